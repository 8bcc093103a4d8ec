"""Short clips: a data set whose classes cannot be read from one frame, and 3D networks with branches."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.branches import BranchedNorm
from robustcli.architectures.clip_resnet import clip_resnet
from robustcli.attacks.surrogate import SurrogateCopy
from robustcli.data.datasets.digits import digits
from robustcli.data.datasets.moving_digits import moving_digits
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import network_profile
from robustcli.measuring.passes import passes_by_kind
from robustcli.runtime.memory_format import to_channels_last

SHAPE = ImageShape(8, 16, 16, 4)
WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def test_every_frame_is_the_last_one_a_pixel_further() -> None:
    source = moving_digits(frames=5)
    assert list(source.classes) == list(WAYS)
    assert len(source.train.labels) == 1437
    assert len(source.test.labels) == 360
    clips = source.test.read(torch.arange(360))
    assert clips.shape == (360, 5, 16, 16)
    assert len(source.mean) == 5
    for clip, label in zip(clips, source.test.labels.tolist(), strict=True):
        for before, after in pairwise(clip):
            assert torch.equal(before.roll(WAYS[source.classes[label]], (0, 1)), after)


def test_clips_show_the_digits_of_their_own_part() -> None:
    still, moving = digits().test, moving_digits(frames=1).test
    numbers = torch.arange(360)
    pixels = still.read(numbers).flatten(1).sort(1).values
    shown = moving.read(numbers).flatten(1).sort(1).values
    assert torch.equal(shown[:, -64:], pixels)
    assert not shown[:, :-64].any()


def test_no_single_frame_tells_the_class() -> None:
    source = moving_digits()
    counts = source.train.labels.bincount(minlength=4)
    # Within four deviations of a quarter of 1,437.
    assert counts.sub(1437 / 4).abs().max() < 4 * (1437 * 3 / 16) ** 0.5
    # The position of the ink in a frame hardly depends on the class: means of rows and columns agree.
    frame = source.train.read(torch.arange(1437))[:, 3]
    for way in range(4):
        ink = frame[source.train.labels == way].mean(0)
        for axis in (0, 1):
            assert float(ink.mean(axis).min() / ink.mean()) > 0.7
            assert float(ink.mean(axis).max() / ink.mean()) < 1.3


def test_the_order_of_frames_counts_and_colors_are_those_of_their_frame() -> None:
    torch.manual_seed(0)
    network = clip_resnet(SHAPE, width=4, stages=2).eval()
    x = torch.rand(2, 8, 16, 16)
    assert not torch.allclose(network(x), network(x.flip(1)))
    colored = clip_resnet(ImageShape(6, 8, 8, 3), frames=2, width=4, stages=1).eval()
    seen = []
    hook = colored.get_submodule("conv1").register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = torch.rand(2, 6, 8, 8)
    colored(x)
    hook.remove()
    # (n, colors, frames, h, w): the third channel is the last color of the first frame.
    assert torch.equal(seen[0][:, 2, 0], x[:, 2])
    assert torch.equal(seen[0][:, 0, 1], x[:, 3])


def test_counts_are_those_of_three_by_three_by_three_kernels() -> None:
    network = clip_resnet(SHAPE, width=4, stages=2).to("meta")
    stem, first = 27 * 4 + 8, 2 * (27 * 4 * 4 + 8)
    second = 27 * 4 * 8 + 27 * 8 * 8 + 2 * 16 + 4 * 8 + 16
    found = network_profile(network, SHAPE)
    assert found.parameters == stem + first + second + 8 * 4 + 4
    full, half = 8 * 16 * 16, 4 * 8 * 8
    convolutions = full * (27 * 4 + 2 * 27 * 4 * 4) + half * (27 * 4 * 8 + 27 * 8 * 8 + 4 * 8)
    assert found.macs == convolutions + 8 * 4
    # Three kernels of three at full size, then one at stride 2, one between and one at pace 2.
    assert [part.field for part in found.parts][:2] == [7, 13]


def test_passes_of_clips_are_counted() -> None:
    network = clip_resnet(SHAPE, width=4, stages=2)
    x = torch.rand(4, 8, 16, 16, requires_grad=True)
    with passes_by_kind(network) as counter:
        torch.autograd.grad(network(x).sum(), x)
        network(x.detach()).sum().backward()
    assert (counter.forwards, counter.input_gradients, counter.weight_gradients) == (8, 4, 4)


def test_frames_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RobustCliError, match=r"architecture.frames: 3 does not divide the 8 channels"):
        clip_resnet(SHAPE, frames=3)


def test_clips_are_searched_and_trained_in_the_format_of_images() -> None:
    network = clip_resnet(SHAPE, width=4, stages=2).eval()
    images = nn.Conv2d(2, 3, 3)
    assert to_channels_last(images).weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.rand(2, 8, 16, 16)
    expected = network(x)
    assert torch.allclose(SurrogateCopy(network)(x), expected, atol=1e-5)
    assert torch.allclose(to_channels_last(network)(x), expected, atol=1e-5)


def test_batch_norms_of_clips_have_branches() -> None:
    network: nn.Module = ARCHITECTURES.get("multibn")(SHAPE, network=clip_resnet(SHAPE, width=4), branches=3)
    norms = [module for module in network.modules() if isinstance(module, BranchedNorm)]
    # Two in each of three blocks and one after the stem; those on shortcuts are shared.
    assert len(norms) == 7
    assert all(isinstance(branch, nn.BatchNorm3d) for norm in norms for branch in norm.branches)
    assert network(torch.rand(2, 8, 16, 16)).shape == (2, 4)
