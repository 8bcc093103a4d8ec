"""Finished images leave the batch of an attack: points do not change, and passes are saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_steps import LINF
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.crafting import crafting
from robustcli.attacks.early_stopped_pgd import EarlyStoppedPgd
from robustcli.attacks.fosc_pgd import FoscPgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.registry.types import AttackBn
from robustcli.threat.noise import IndexedNoise, Noise, StreamNoise

COUNT = 24
X = images(COUNT, dtype=torch.float64)
Y = labels(COUNT)
ATTACKS: list[Attack] = [
    EarlyStoppedPgd(steps=5, patience=1),
    EarlyStoppedPgd(steps=5, loss="kl", start="gaussian", noise_std=0.0),
    FoscPgd(steps=5, criterion=0.011),
    FoscPgd(steps=5, criterion=0.011, center="start"),
]


@contextmanager
def sizes_of(model: nn.Module) -> Iterator[list[int]]:
    """Sizes of the batches that the model sees."""
    sizes: list[int] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        sizes.append(len(inputs[0]))

    hook = model.register_forward_hook(note)
    try:
        yield sizes
    finally:
        hook.remove()


def right_at_first(model: nn.Module) -> Tensor:
    """Labels of which two thirds are the model's predictions."""
    with torch.no_grad():
        return torch.where(torch.arange(COUNT) % 3 > 0, model.eval()(X).argmax(1), Y)


def sources() -> list[Noise]:
    return [StreamNoise.on(torch.device("cpu")).reseed(7), IndexedNoise(7, torch.arange(COUNT))]


@pytest.mark.parametrize("source", [0, 1], ids=["stream", "by counter"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_points_are_those_of_the_whole_batch(attack: Attack, source: int) -> None:
    model = conv_net(dtype=torch.float64).eval()
    y = right_at_first(model)
    with no_early_exit(), sizes_of(model) as whole:
        expected, told = attack.search(model, X, y, LINF, sources()[source])
    with sizes_of(model) as sizes:
        found, report = attack.search(model, X, y, LINF, sources()[source])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert report["attack_steps"] == told["attack_steps"] < 5
    assert set(whole) == {COUNT}
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < COUNT, "nobody left"


@pytest.mark.parametrize("attack_bn", ["train", "batch_no_update"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_image_leaves_a_batch_with_batch_statistics(attack: Attack, attack_bn: AttackBn) -> None:
    model = conv_net(dtype=torch.float64)
    y = right_at_first(model)
    with crafting(model, attack_bn), sizes_of(model) as sizes:
        attack.search(model, X, y, LINF, sources()[0])
    assert set(sizes) == {COUNT}


def test_the_search_ends_with_the_last_image() -> None:
    model = conv_net(dtype=torch.float64).eval()
    with torch.no_grad():
        wrong = (model(X).argmax(1) + 1) % 10
    with sizes_of(model) as sizes:
        EarlyStoppedPgd(steps=5, start="gaussian")(model, X, wrong, LINF, sources()[0])
    assert sizes == [COUNT]


def test_no_early_exit_holds_only_inside_its_block() -> None:
    with pytest.raises(ValueError, match="mended"), no_early_exit():
        raise ValueError("mended")
    model = conv_net(dtype=torch.float64).eval()
    with sizes_of(model) as sizes:
        FoscPgd(steps=3, criterion=1e9)(model, X, Y, LINF, sources()[0])
    assert sizes == [COUNT, COUNT]
