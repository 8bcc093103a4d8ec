"""Label smoothing: the loss uses smoothed labels, the attack by default the original ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_training import COUNT, CPU, Recorder, loop_of, training_of
from torch import Tensor, nn

from robustcli.contracts.networks import conv_net, images, labels
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.mixers import Mixer
from robustcli.data.mixers.cutmix import CutMix
from robustcli.data.mixers.mixup import MixUp
from robustcli.data.mixers.none import Unmixed
from robustcli.data.splits import Data, prepare
from robustcli.data.targets import Labels, Targets
from robustcli.defenses import Defense
from robustcli.defenses.free import Free
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import Interrupted
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import StreamNoise
from robustcli.training.loop import fit

SETTINGS = TrainSettings(epochs=1, batch_size=8, device="cpu")
SMOOTHING = 0.3
NONE, LOSS = Targets(), Targets(smoothing=SMOOTHING)
BOTH = replace(LOSS, reach_attack=True)

Images = list[Tensor]


def data_of(targets: Targets) -> Data:
    split = TensorSplit(images(COUNT), labels(COUNT))
    source = Source(split, split, [str(label) for label in range(10)], mean=(0.5,), std=(0.25,))
    return prepare(source, val_size=0, train_size=None, device=CPU, workers=0, targets=targets)


class Watching:
    """A step that keeps its batches."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Labels]] = []

    def __call__(self, x: Tensor, labels: Labels, threat: Any, progress: Any) -> dict[str, Tensor]:
        self.seen.append((x, labels))
        return {"loss": torch.tensor(1.0)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def batches(targets: Targets, mixer: Mixer) -> list[tuple[Tensor, Labels]]:
    training = training_of(SETTINGS, Recorder())
    training.step = watching = Watching()
    fit(training, replace(loop_of(training, SETTINGS, mixer=mixer), data=data_of(targets)))
    return watching.seen


@pytest.mark.parametrize("mixer", [Unmixed(), MixUp(), CutMix()], ids=lambda part: type(part).__name__)
def test_the_attack_is_given_the_labels_that_there_are_without_smoothing(mixer: Mixer) -> None:
    for (x, found), (x_plain, plain) in zip(batches(LOSS, mixer), batches(NONE, mixer), strict=True):
        assert plain.loss is plain.attack
        assert torch.equal(x, x_plain)
        assert torch.equal(found.attack, plain.attack)
        shares = nn.functional.one_hot(plain.attack, 10).float() if plain.attack.dim() == 1 else plain.attack
        assert torch.allclose(found.loss, (1 - SMOOTHING) * shares + SMOOTHING / 10, rtol=0, atol=1e-6)
    for (_, both), (_, found) in zip(batches(BOTH, mixer), batches(LOSS, mixer), strict=True):
        assert both.attack is both.loss
        assert torch.equal(both.loss, found.loss)


def shown(defense: Defense, targets: Targets, mixer: Mixer | None = None, *, updates: int = 1) -> tuple[Images, float]:
    """The images that the network is shown in the first updates, in their order, and the loss."""
    network, noise, seen = conv_net(), StreamNoise.on(CPU), []
    training = training_of(SETTINGS, defense, network=network, noise=noise)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    loop = loop_of(
        training,
        SETTINGS,
        noise=noise,
        mixer=mixer,
        replays=defense.replays,
        stop_requested=lambda: training.updates >= updates,
    )
    with pytest.raises(Interrupted):
        fit(training, replace(loop, data=data_of(targets)))
    return seen, float(training.means.sums["loss"])


def same(one: Images, other: Images) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_smoothing_for_the_loss_leaves_every_point_of_the_attack_where_it_was() -> None:
    (plain, loss), (found, smoothed) = (shown(pgd_at(steps=3), targets) for targets in (NONE, LOSS))
    assert len(plain) == 4
    assert same(found, plain)
    assert smoothed != loss


def test_smoothing_for_both_moves_the_attack() -> None:
    (plain, _), (found, smoothed) = (shown(pgd_at(steps=3), targets) for targets in (NONE, BOTH))
    assert torch.equal(plain[0], found[0]), "the random starts"
    assert not same(found, plain)
    assert smoothed != shown(pgd_at(steps=3), LOSS)[1]


def test_mixed_labels_reach_attack_and_loss_and_their_smoothing_the_loss() -> None:
    mixer = MixUp()
    (plain, loss), (found, smoothed) = (shown(pgd_at(steps=3), targets, mixer) for targets in (NONE, LOSS))
    assert same(found, plain)
    assert smoothed != loss
    # The labels of the same mixed images decide where the attack goes.
    (hard, _), (mixed, _) = (shown(pgd_at(steps=3), NONE, each) for each in (ImagesOnly(mixer), mixer))
    assert torch.equal(hard[0], mixed[0]), "the random starts around the same images"
    assert not same(hard, mixed)


class ImagesOnly:
    """A mixer that does not mix labels."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Any) -> tuple[Tensor, Labels]:
        return self.mixer(x, labels, classes, rng)[0], labels


def test_free_training_has_one_backward_for_both() -> None:
    """Its first update is at the images themselves, and delta begins with its gradient."""
    plain, found, both = (shown(Free(replays=2), targets, updates=2)[0] for targets in (NONE, LOSS, BOTH))
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1], plain[1])
    assert same(found, both)


def test_natural_training_uses_smoothed_labels() -> None:
    (plain, loss), (found, smoothed) = (shown(natural(), targets) for targets in (NONE, LOSS))
    assert same(found, plain)
    assert smoothed != loss


SPEC = """\
name: smoothed
data: {name: digits, OPTIONS}
architecture: {name: small_cnn}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at}
train: {epochs: 1}
"""


def spec_of(options: str) -> ExperimentSpec:
    return ExperimentSpec.parse(SPEC.replace("OPTIONS", options), "the test")


def test_digests_tell_what_smoothing_is_for_and_older_ones_stay() -> None:
    assert spec_of("val_size: 0").digest == "43ebc8ae"
    for options, before in (
        ("label_smoothing: 0.1", "882c0d86"),
        ("extra: {path: a, label_smoothing: 0.1}", "7125b413"),
    ):
        assert spec_of(f"{options}, smoothing_for: both").digest == before, "smoothed labels reached the attack then"
        assert spec_of(options).digest not in (before, spec_of("val_size: 0").digest)
