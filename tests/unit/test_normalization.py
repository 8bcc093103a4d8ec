"""The normalization of an external network is determined on clean images or must be given."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.architectures import Normalize
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.splits import Data, prepare
from robustcli.errors import RobustCliError
from robustcli.models import normalization
from robustcli.models.external import ExternalNetwork
from robustcli.models.normalization import Statistics, find_normalization
from robustcli.store.provenance import Sizes

CLASSES, COUNT = 8, 200


def levels(seed: int = 0, *, spread: int = 32) -> Data:
    """Images of one level each; the class is the eighth of [0, 1] that the level lies in.

    Args:
        spread: number of levels of a class, around its center.
    """
    generator = torch.Generator().manual_seed(seed)
    centers = 32 * torch.randint(CLASSES, (COUNT, 1, 1, 1), generator=generator) + 16
    shades = (centers + spread * (torch.rand(COUNT, 1, 1, 1, generator=generator) - 0.5)).to(torch.uint8)
    split = TensorSplit(shades.expand(-1, 1, 4, 4).contiguous(), (shades.flatten() // 32).long())
    source = Source(split, split, [str(n) for n in range(CLASSES)], mean=(0.25,), std=(0.125,))
    return prepare(source, val_size=0, train_size=None, device=torch.device("cpu"), workers=0)


class Reads(nn.Module):
    """Classes of levels that were normalized with a mean and a deviation."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        level = (x.mean((1, 2, 3)) * self.std + self.mean)[:, None]
        centers = (torch.arange(CLASSES) + 0.5) / CLASSES
        return -10 * (level - centers).abs()


class Invariant(nn.Module):
    """Reads the rank of a level in its batch, which no normalization changes."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        rank = level.argsort().argsort() * CLASSES // len(x)
        return nn.functional.one_hot(rank, CLASSES).float()


def behind(body: nn.Module) -> Any:
    def build(statistics: Statistics) -> nn.Module:
        return ExternalNetwork(Normalize(*statistics), body).eval()

    return build


@pytest.mark.parametrize("usual", [None, "it brings its own"])
@pytest.mark.parametrize(
    ("mean", "std", "name"), [(0.0, 1.0, "none"), (0.25, 0.125, "the data set's"), (0.5, 0.5, "0.5/0.5")]
)
def test_the_normalization_that_is_clearly_best_is_taken(mean: float, std: float, name: str, usual: str | None) -> None:
    found = find_normalization(behind(Reads(mean, std)), levels(), "x", usual)
    assert found.statistics == ((mean,), (std,))
    assert f"took {name} (clearly best" in found.note
    assert "clean accuracy on 200 images by normalization: none " in found.note


def test_an_unclear_choice_of_normalization_is_refused() -> None:
    with pytest.raises(RobustCliError) as caught:
        find_normalization(behind(Reads(7.0, 0.01)), levels(), "net.pt")
    said = str(caught.value)
    assert said.startswith("net.pt: nothing says which normalization it was trained with")
    for option in (
        "none: --mean 0 --std 1",
        "the data set's: --mean 0.25 --std 0.125",
        "0.5/0.5: --mean 0.5 --std 0.5",
    ):
        assert option in said


def test_a_normalization_in_the_users_code_is_not_questioned() -> None:
    found = find_normalization(behind(Reads(7.0, 0.01)), levels(), "x", "it brings its own")
    assert found.statistics == ((0.0,), (1.0,))
    assert "took none (it brings its own" in found.note


def test_where_all_give_the_same_there_is_nothing_to_ask() -> None:
    found = find_normalization(behind(Invariant()), levels(), "x")
    assert found.statistics == ((0.0,), (1.0,))
    assert "all give the same" in found.note


class Shifted(nn.Module):
    """Reads levels; its first layer expects one normalization and tolerates similar ones."""

    def __init__(self, mean: float, std: float, sharpness: float) -> None:
        super().__init__()
        self.mean, self.std, self.sharpness = mean, std, sharpness

    def forward(self, x: Tensor) -> Tensor:
        level = (x.mean((1, 2, 3)) * self.std + self.mean)[:, None]
        return -self.sharpness * (level - (torch.arange(CLASSES) + 0.5) / CLASSES) ** 2


@pytest.mark.parametrize("sharpness", [20.0, 100.0])
def test_of_normalizations_with_one_accuracy_the_one_with_the_lowest_loss_is_taken(
    sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    similar = {"none": ((0.0,), (1.0,)), "own": ((0.25,), (0.125,)), "similar": ((0.27,), (0.126,))}
    monkeypatch.setattr(normalization, "candidates", lambda data, x: similar)
    found = find_normalization(behind(Shifted(0.25, 0.125, sharpness)), levels(spread=12), "x")
    assert found.statistics == similar["own"]
    assert "took own (the accuracy of 2 is equal within noise, and the loss of this one is clearly" in found.note
    assert "similar 100.0 %" in found.note


def test_nearly_equal_normalizations_need_no_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    similar = {"none": ((0.0,), (1.0,)), "own": ((0.25,), (0.125,)), "same": ((0.25,), (0.12500001,))}
    monkeypatch.setattr(normalization, "candidates", lambda data, x: similar)
    monkeypatch.setattr(normalization._Trial, "has_clearly_lower_loss", lambda *_: False)
    found = find_normalization(behind(Shifted(0.25, 0.125, 200.0)), levels(), "x")
    assert "so this hardly matters" in found.note


def test_a_difference_on_few_images_needs_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    data = levels()
    monkeypatch.setattr(type(data), "sizes", Sizes(train=200, val=0, test=4))
    wide = {"own": ((0.25,), (0.125,)), "other": ((0.30,), (0.125,))}
    monkeypatch.setattr(normalization, "candidates", lambda data, x: wide)
    with pytest.raises(RobustCliError, match="nothing says which"):
        find_normalization(behind(Shifted(0.25, 0.125, 200.0)), data, "x")


def test_being_less_sure_of_everything_is_no_lower_loss() -> None:
    """An overconfident network has a lower loss with a normalization that reduces contrast."""
    data = levels()
    x, y = data.evaluation("test")
    sure = normalization._trial(behind(Shifted(0.25, 0.125, 1e5))(((0.25,), (0.125,))), x, y)
    unsure = normalization._trial(behind(Shifted(0.25, 0.125, 1e3))(((0.25,), (0.125,))), x, y)
    assert abs(sure.mean - unsure.mean) < 0.05


# Classes


def part(names: list[str], labels: list[int], *, are_known: bool = True, is_whole: bool = False) -> Data:
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    nothing = TensorSplit(images[:0], torch.zeros(0, dtype=torch.int64))
    source = Source(
        nothing,
        TensorSplit(images, torch.tensor(labels)),
        names,
        (),
        (),
        classes_are_known=are_known,
        is_whole=is_whole,
    )
    return prepare(source, val_size=0, train_size=None, device=torch.device("cpu"), workers=0)


def test_labels_are_numbered_as_in_the_network_when_classes_are_missing() -> None:
    data = part(["bird", "dog"], [0, 1, 1])
    data.name_classes(["bird", "cat", "dog"])
    assert data.evaluation("test")[1].tolist() == [0, 2, 2]
    assert data.shape.classes == 3


def test_numbers_stay_where_only_the_largest_may_be_missing() -> None:
    data = part(["0", "1"], [0, 1], are_known=False)
    data.name_classes(["bird", "cat", "dog"])
    assert data.evaluation("test")[1].tolist() == [0, 1]
    assert data.shape.classes == 3


@pytest.mark.parametrize(("names", "is_whole"), [(["bird", "cat", "dog"], True), (["cat", "cow", "elk"], False)])
def test_classes_that_are_known_and_others_stay(names: list[str], is_whole: bool) -> None:
    data = part(["bird", "dog"], [0, 1], is_whole=is_whole)
    data.name_classes(names)
    assert data.evaluation("test")[1].tolist() == [0, 1]
    assert data.shape.classes == 2
