"""Preprocessors: what they do to images, and that attacks see through them."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import robustcli
from robustcli.architectures import Network, Normalize
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, drawn_from, images
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluators import Evaluator
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.clean import Clean
from robustcli.preprocessors import Preprocessor
from robustcli.preprocessors.bit_depth import BitDepth
from robustcli.preprocessors.jpeg import Jpeg
from robustcli.preprocessors.resize_pad import ResizePad
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(3, 20))
COUNT = 30

SPEC = """
name: behind
data: digits
architecture: {name: small_cnn, width: 4%s}
threat: {norm: linf, eps: 8/255}
defense: natural
train: {epochs: 1}
"""


@cache
def body(preprocess: Preprocessor | None = None) -> nn.Module:
    """An undefended network that reads digits."""
    x, y = robustcli.images("digits", split="train")
    net = conv_net()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(net(x if preprocess is None else preprocess(x)), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net


def network(preprocess: Preprocessor | None = None) -> Network:
    return Network(Normalize((0.0,), (1.0,)), body(), preprocess).eval()


def judged(model: nn.Module, evaluator: Evaluator, count: int = COUNT) -> Result:
    x, y = robustcli.images("digits", examples=count)
    return evaluate("attacked", {}, evaluator, model, x, y, THREAT, 0)


@dataclass(frozen=True)
class WithoutGradient(Preprocessor):
    """The same transformation as autograd sees it: its gradient is zero."""

    inner: Preprocessor

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x).detach() + 0 * x


@pytest.mark.parametrize(("channels", "subsampling"), [(1, "4:2:0"), (3, "4:2:0"), (3, "4:4:4")])
def test_jpeg_is_that_of_pillow(channels: int, subsampling: str) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (5, 24, 16, channels), dtype=np.uint8)
    expected = []
    for image in codes:
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=30, subsampling=subsampling)
        expected.append(np.asarray(Image.open(buffer)).reshape(image.shape))
    x = torch.from_numpy(codes).permute(0, 3, 1, 2).float() / 255
    found = Jpeg(quality=30, subsampling=subsampling)(x)  # type: ignore[arg-type]
    assert torch.equal((255 * found).round().byte(), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert not torch.equal(found, x)


def test_bit_depth_has_so_many_levels() -> None:
    found = BitDepth(bits=2)(torch.linspace(0, 1, 101).view(1, 1, 1, -1))
    assert found.unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_resize_pad_copies_pixels_to_a_random_place() -> None:
    x = images(200, 3, 16)[..., :12] + 0.1
    enlarged = ResizePad(smallest=1.25, canvas=1.25)
    expected = F.interpolate(x, scale_factor=1.25, mode="nearest-exact")
    assert torch.equal(enlarged(x), expected)
    found = ResizePad(smallest=0.5, canvas=1.0)(x)
    heights = (found.abs().sum((1, 3)) > 0).sum(1)
    assert {int(height) for height in heights} == set(range(8, 17))
    for image, shown, height in zip(x, found, heights.tolist(), strict=True):
        rows, columns = (shown.abs().sum((0, axis)).nonzero() for axis in (2, 1))
        inside = shown[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert torch.equal(inside, F.interpolate(image[None], size=(height, len(columns)), mode="nearest-exact")[0])


def test_resize_pad_uses_the_whole_canvas() -> None:
    with drawn_from(0):
        found = ResizePad(smallest=0.5, canvas=0.75)(torch.ones(400, 1, 4, 4))
    # Images of 2 x 2 pixels have 2 x 2 places on the canvas of 3 x 3, all equally likely.
    half = found[found.sum((1, 2, 3)) == 4]
    for row, column in product((0, 2), (0, 2)):
        assert 0.15 < float(half[:, 0, row, column].mean()) < 0.35


def test_the_smallest_canvas_of_resize_pad_is_one_pixel() -> None:
    tiny = ResizePad(smallest=0.01, canvas=0.01)
    assert tiny.size(8, 40) == (1, 1)
    assert tiny(torch.rand(2, 3, 8, 40)).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("preprocess", [Jpeg(quality=40), BitDepth(bits=3)], ids=["jpeg", "bit_depth"])
@pytest.mark.slow
def test_pgd_sees_through_a_transformation_only_with_its_backward_pass(preprocess: Preprocessor) -> None:
    pgd = Attacked(attack=Pgd(steps=20, keep="fooled"))
    plain, through, blind = (judged(network(one), pgd) for one in (None, preprocess, WithoutGradient(preprocess)))
    assert plain.correct <= COUNT // 4
    assert through.correct <= plain.correct + 0.15 * COUNT
    assert blind.correct >= plain.correct + 0.4 * COUNT
    assert not any("gradient" in text for text in through.suspicions or ())
    assert any("gradient" in text for text in blind.suspicions or ())


@pytest.mark.slow
def test_a_random_transformation_is_judged_by_its_votes_and_seen_through_by_the_mean_gradient() -> None:
    random = ResizePad(smallest=0.7, votes=7)
    model = Network(Normalize((0.0,), (1.0,)), body(random), random).eval()
    count = 15
    clean = judged(model, Clean(), count)
    assert clean.forwards == 7 * count
    assert clean.correct >= 0.9 * count
    assert clean.verdict == "TRUSTED"
    single = judged(model, Attacked(attack=Pgd(steps=20, keep="fooled")), count)
    mean = judged(model, Attacked(attack=Pgd(steps=20, gradients=10, keep="best")), count)
    rand = judged(model, AutoAttack(version="rand", attacks=("apgd-dlr",)), count)
    assert single.correct >= 0.25 * count
    assert mean.correct <= 0.1 * count
    assert rand.correct <= 0.1 * count
    assert mean.verdict == rand.verdict == "TRUSTED"
    assert any("eot_pgd" in text for text in single.suspicions or ())


@pytest.mark.parametrize("batch_size", [1, 7, 30])
@pytest.mark.slow
def test_a_deterministic_transformation_does_not_depend_on_batches(batch_size: int) -> None:
    pgd = Attacked(attack=Pgd(steps=3), batch_size=batch_size)
    one, other = judged(network(Jpeg()), pgd), judged(network(Jpeg()), Attacked(attack=Pgd(steps=3)))
    assert one.survivors == other.survivors


def test_digests_of_specs_without_a_preprocessor_stay() -> None:
    def digest(text: str) -> str:
        return ExperimentSpec.parse(SPEC % text, "test").digest

    assert digest("") == digest(", preprocess: none") == "253af078"
    assert len({digest(""), digest(", preprocess: jpeg"), digest(", preprocess: {name: jpeg, quality: 50}")}) == 3


@pytest.mark.parametrize("change", [lambda one: one.double(), lambda one: one.half()], ids=["double", "half"])
def test_jpeg_keeps_the_precision_of_its_images(change: Callable[[Tensor], Tensor]) -> None:
    x = change(images(2, 3, 8))
    assert Jpeg()(x).dtype == x.dtype
