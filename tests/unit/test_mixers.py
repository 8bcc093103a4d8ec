"""MixUp, CutMix and Cutout against their equations, and the limits in which they mix nothing."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_training import CPU, Recorder, loop_of, training_of
from torch import Tensor

from robustcli.contracts.networks import images, labels
from robustcli.data.augmentation import augment
from robustcli.data.mixers import Mixer
from robustcli.data.mixers.cutmix import CutMix
from robustcli.data.mixers.cutout import Cutout
from robustcli.data.mixers.mixup import MixUp
from robustcli.data.mixers.none import Unmixed
from robustcli.data.mixers.partners import beta, partners
from robustcli.data.targets import Labels
from robustcli.specs.settings import Augment, TrainSettings
from robustcli.threat.noise import StreamNoise
from robustcli.training.loop import fit

COUNT, CLASSES = 12, 10


def noise(batch: int = 0) -> StreamNoise:
    return StreamNoise.on(CPU).reseed(0, "mix", batch)


def mixed(mixer: Mixer, batch: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y and what the mixer makes of them, in double precision."""
    x, y = images(COUNT, 3, seed=batch, dtype=torch.float64), labels(COUNT, seed=batch)
    found, both = mixer(x, Labels.of(y), CLASSES, noise(batch))
    return x, y, found, both.loss


@pytest.mark.parametrize(
    "mixer", [MixUp(alpha=0), CutMix(alpha=0), Cutout(side=0), Unmixed()], ids=lambda part: type(part).__name__
)
def test_no_mixing_changes_nothing(mixer: Mixer) -> None:
    x, y = images(COUNT), labels(COUNT)
    found, both = mixer(x, Labels.of(y), CLASSES, noise())
    assert found is x
    assert both.attack is both.loss is y


def test_a_small_alpha_only_permutes_the_batch() -> None:
    """Nearly all of an image stays or nearly all of it goes to its partner."""
    for batch in range(20):
        x, y, found, shares = mixed(MixUp(alpha=1e-4), batch)
        partner = partners_of(batch, 1e-4)
        order = torch.arange(COUNT) if torch.allclose(found, x, atol=1e-6) else partner
        assert torch.allclose(found, x[order], atol=1e-6)
        assert torch.allclose(shares, F.one_hot(y[order], CLASSES).double(), atol=1e-6)


def partners_of(batch: int, alpha: float) -> Tensor:
    """The partners of images in MixUp."""
    rng, x = noise(batch), images(COUNT, 3, dtype=torch.float64)
    beta(alpha, x, rng)
    return partners(x, rng)


def test_mixup_blends_images_and_labels_by_one_share() -> None:
    for batch in range(5):
        x, y, found, shares = mixed(MixUp(alpha=1), batch)
        partner = partners_of(batch, 1)
        assert sorted(partner.tolist()) == list(range(COUNT))
        kept = beta(1, x, noise(batch))
        assert 0 < float(kept) < 1
        assert torch.allclose(found, kept * x + (1 - kept) * x[partner], rtol=0, atol=1e-12)
        one_hot = F.one_hot(y, CLASSES).double()
        assert torch.allclose(shares, kept * one_hot + (1 - kept) * one_hot[partner], rtol=0, atol=1e-12)


def test_cutmix_takes_a_box_and_counts_its_pixels() -> None:
    """Images that are identified by their value: image i is i everywhere."""
    x = torch.arange(COUNT, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 8, 6) / COUNT
    y = torch.arange(COUNT) % CLASSES
    seen = set()
    for batch in range(60):
        found, both = CutMix()(x, Labels.of(y), CLASSES, noise(batch))
        shares = both.loss
        is_box = found[:, 0] != x[:, 0]
        moved = is_box.flatten(1).any(1)
        seen.add(int(moved.sum()))
        for image in range(COUNT):
            if not moved[image]:
                continue  # Without a box, or its own partner.
            box = is_box[image]
            rows, columns = box.any(1), box.any(0)
            assert torch.equal(box, rows[:, None] & columns), "not a box"
            for side in (rows, columns):
                inside = side.nonzero().flatten()
                assert len(inside) == int(inside[-1] - inside[0]) + 1, "not in one piece"
            (partner,) = (found[image, 0][box] * COUNT).round().unique().long().tolist()
            area = float(box.double().mean())
            one_hot = F.one_hot(y, CLASSES).double()
            expected = (1 - area) * one_hot[image] + area * one_hot[partner]
            assert torch.allclose(shares[image], expected, rtol=0, atol=1e-12)
            assert torch.equal(found[image, 0], found[image, 2])
    assert len(seen) > 1


def test_a_box_without_pixels_is_the_identity() -> None:
    """Some share is so large that the box is empty."""
    nothing = 0
    for batch in range(100):
        x, y, found, shares = mixed(CutMix(), batch)
        if torch.equal(found, x):
            nothing += 1
            assert torch.equal(shares, F.one_hot(y, CLASSES).double())
    assert nothing > 0


def test_cutout_is_a_square_of_each_image_and_no_label() -> None:
    """Against the augmentation of the same name, which is tested pixel by pixel, with the same numbers."""
    x, y = images(COUNT, 3), labels(COUNT)

    class Told:
        """A noise source with given values."""

        def __init__(self, numbers: Tensor) -> None:
            self.numbers = numbers

        def uniform(self, like: Tensor) -> Tensor:
            assert like.shape == self.numbers.shape
            return self.numbers

    places = torch.rand((COUNT, 2), generator=torch.Generator().manual_seed(4))
    found, both = Cutout(side=3)(x, Labels.of(y), CLASSES, Told(places))  # type: ignore[arg-type]
    chance = torch.cat([torch.zeros(COUNT, 3), places], 1)
    assert torch.equal(found, augment(x, Augment(cutout=3), Told(chance)))  # type: ignore[arg-type]
    assert both.attack is both.loss is y
    assert not torch.equal(found, x)


def test_cutout_squares_lie_anywhere() -> None:
    hidden = sum(
        (Cutout(side=1)(torch.ones(COUNT, 1, 3, 4), Labels.of(labels(COUNT)), CLASSES, noise(b))[0] == 0)
        for b in range(20)
    )
    assert isinstance(hidden, Tensor)
    assert int(hidden.sum()) == 20 * COUNT, "one pixel of each image"
    assert (hidden.sum((0, 1)) > 0).all(), "and every pixel of some"


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 1.4, 8.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    x = torch.zeros(1)
    rng = noise()
    found = np.array([float(beta(alpha, x, rng)) for _ in range(4000)])
    assert np.isfinite(found).all()
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)
    # The fourth central moment tells a U from a bell of equal width.
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert ((found - 0.5) ** 4).mean() == pytest.approx(fourth, rel=0.12)


# In the loop.


class Watching:
    """A step that keeps its batches."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, labels: Labels, *_: Any) -> dict[str, Tensor]:
        self.seen.append((x, labels.loss))
        return {"loss": torch.tensor(1.0)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def batches(mixer: Mixer, *, updates: int = 0, replays: int = 1, flip: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Inputs of the steps of two epochs after the first `updates`."""
    settings = TrainSettings(epochs=2, batch_size=8, device="cpu")
    training = training_of(settings, Recorder())
    watching = Watching()
    training.step, training.updates = watching, updates
    fit(training, loop_of(training, settings, augment=Augment(flip=flip), mixer=mixer, replays=replays))
    return watching.seen


def equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("mixer", [MixUp(), CutMix()], ids=lambda part: type(part).__name__)
def test_mixing_depends_only_on_seed_epoch_and_batch(mixer: Mixer) -> None:
    whole = batches(mixer)
    assert len(whole) == 6
    assert [y.dim() for _, y in whole] == [2] * 6
    for done in range(1, 6):
        assert equal(batches(mixer, updates=done), whole[done:])
    assert not equal(whole[:3], whole[3:])


def test_every_batch_has_a_share_of_its_own_whatever_else_is_done_to_images() -> None:
    found, unflipped = batches(MixUp()), batches(MixUp(), flip=False)
    assert all(torch.equal(y, other) for (_, y), (_, other) in zip(found, unflipped, strict=True))
    kept = [round(float(y[y < 1].max()), 5) for _, y in found]
    assert len(set(kept)) == len(kept)


def test_a_mixer_that_is_off_leaves_the_batches_of_plain_training() -> None:
    plain = batches(Unmixed())
    assert [y.dim() for _, y in plain] == [1] * 6
    assert equal(batches(MixUp(alpha=0)), plain)
    assert equal(batches(CutMix(alpha=0)), plain)


def test_a_replayed_batch_is_mixed_once() -> None:
    twice, once = batches(CutMix(), replays=2), batches(CutMix())
    assert equal(twice[::2], once)
    assert equal(twice[1::2], once)
