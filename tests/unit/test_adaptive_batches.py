"""Batches that do not fit are cut, and nothing else changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.fab import fab_t
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.errors import EvaluationError
from robustcli.evaluation import adaptive_batches
from robustcli.evaluation.adaptive_batches import AdaptiveBatches
from robustcli.evaluation.gather import gather
from robustcli.evaluators import Stage
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

CPU = torch.device("cpu")


def tried(found: AdaptiveBatches, count: int, asked: int | None, fits: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Finished slices and tried sizes, if more than `fits` images run out of memory."""
    sizes: list[int] = []

    def work(part: slice, size: int) -> tuple[int, int]:
        assert part.stop - part.start <= size
        sizes.append(part.stop - part.start)
        if part.stop - part.start > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return part.start, part.stop

    return [*found.map(count, asked, work)], sizes


def test_slices_cover_everything_once_and_are_halved_until_they_fit() -> None:
    assert tried(AdaptiveBatches(CPU), 10, 4, 100) == ([(0, 4), (4, 8), (8, 10)], [4, 4, 2])
    assert tried(AdaptiveBatches(CPU), 10, 8, 3) == ([(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)], [8, 4, 2, 2, 2, 2, 2])
    assert tried(AdaptiveBatches(CPU), 10, None, 100) == ([(0, 10)], [10])
    assert tried(AdaptiveBatches(CPU), 0, 4, 100) == tried(AdaptiveBatches(CPU), 0, None, 100) == ([], [])


def test_what_one_attack_found_holds_for_the_next() -> None:
    found = AdaptiveBatches(CPU)
    assert found.least is None
    tried(found, 8, 8, 2)
    assert found.least == 2
    # A quarter of the requested size.
    assert tried(found, 8, 16, 100) == ([(0, 4), (4, 8)], [4, 4])


def test_a_small_rest_that_does_not_fit_is_halved_too() -> None:
    found = AdaptiveBatches(CPU)
    assert tried(found, 3, 250, 1) == ([(0, 1), (1, 2), (2, 3)], [3, 1, 1, 1])


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="out of memory on cpu with one image at a time"):
        tried(AdaptiveBatches(CPU), 4, 4, 0)
    with pytest.raises(torch.OutOfMemoryError):
        tried(AdaptiveBatches(CPU), 4, None, 3)


def test_batches_are_doubled_while_memory_lies_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    used = {"share": 0.1}
    monkeypatch.setattr(adaptive_batches, "_share_used", lambda _device: used["share"])
    found = AdaptiveBatches(torch.device("cuda"))
    assert tried(found, 20, 2, 100)[1] == [2, 4, 8, 6]
    used["share"] = 0.5
    assert tried(found, 20, 2, 100)[1] == [16, 4]
    used["share"] = 0.1
    # Once memory has run out, nothing grows again.
    assert tried(found, 20, 2, 5)[1] == [16, 8, 4, 4, 4, 4, 4]


def test_a_forward_that_fits_says_nothing_about_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean batches grow while memory is free; attacks begin with the requested size."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(adaptive_batches, "_share_used", lambda _device: 0.1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    sizes: dict[str, list[int]] = {"clean": [], "attack": [], "other": []}

    def work(kind: str, fits: int) -> Callable[[slice, int], None]:
        def run(part: slice, _size: int) -> None:
            sizes[kind].append(part.stop - part.start)
            if part.stop - part.start > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    found = AdaptiveBatches(torch.device("cuda"))
    assert len([*found.map(30, 2, work("clean", 100), "clean")]) == 4
    assert len([*found.map(8, 2, work("attack", 3), "attack")]) == 4
    assert sizes == {"clean": [2, 4, 8, 16], "attack": [2, 4, 2, 2, 2], "other": []}
    assert found.least == 2
    # A new kind of pass begins with the size of the kind that needs most memory.
    found = AdaptiveBatches(torch.device("cuda"))
    [*found.map(4, 8, work("attack", 3), "attack")]
    [*found.map(6, 8, work("other", 100), "other")]
    assert sizes["other"] == [2, 4]


def test_memory_of_other_processes_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"bytes": 20 * 2**30}
    with simulated_gpu(total=24 * 2**30, free=lambda: free["bytes"]):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 2**30)
        assert adaptive_batches._share_used(torch.device("cuda")) == pytest.approx(1 / 20)
        free["bytes"] = 2**30
        assert adaptive_batches._share_used(torch.device("cuda")) == 1


def test_the_next_evaluation_of_a_network_begins_where_the_last_ended() -> None:
    model, other = conv_net(), conv_net()
    tried(AdaptiveBatches(CPU, model), 8, 8, 2)
    again = AdaptiveBatches(CPU, model)
    assert tried(again, 4, 8, 100)[1] == [2, 2]
    assert again.warnings == (), "nothing ran out in this one"
    assert tried(AdaptiveBatches(CPU, other), 8, 8, 100)[1] == [8]


def test_nothing_grows_where_the_network_draws_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    model = conv_net()
    found = AdaptiveBatches(torch.device("cuda"), model, is_random=True)
    assert tried(found, 20, 8, 4)[1] == [8, 4, 4, 4, 4, 4]
    assert found.warnings == (
        "memory ran out; batches were cut to 4 images, which changes the noise that the network draws",
    )
    assert tried(AdaptiveBatches(torch.device("cuda"), model, is_random=True), 8, 8, 100)[1] == [8]


@dataclass(frozen=True)
class Hungry(Attack):
    """PGD that runs out of memory above a number of images."""

    fits: int

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Pgd(steps=3)(model, x, y, threat, rng)


def test_findings_are_the_same_however_little_fits() -> None:
    model, x, y = conv_net().eval(), images(20), labels(20, 2)
    threat = ThreatModel("linf", "0.1")

    def found(fits: int) -> Any:
        return gather(
            Attacked(attack=Hungry(fits), batch_size=8), model, x, y, threat, IndexedNoise(0, torch.arange(len(x)))
        )

    whole, cut = found(8), found(3)
    assert torch.equal(whole.broken_by, cut.broken_by)
    assert torch.equal(whole.margins, cut.margins)
    assert whole.warnings == ()
    assert list(cut.warnings) == ["memory ran out; batches were cut to 2 images, which costs only time"]


def test_points_in_a_pass_are_cut_with_the_images() -> None:
    stage = Stage(name="fab", attack=fab_t(targets=9, batch_size=8), noise="fab", batch_size=8)
    assert stage.limited(3).attack.batch_size == 3  # type: ignore[attr-defined]
    wish = Stage(name="fab", attack=fab_t(targets=9, batch_size=2), noise="fab", batch_size=8)
    assert wish.limited(16).attack.batch_size == 2  # type: ignore[attr-defined]
    assert Stage.of(Pgd(), 8).limited(3) == Stage.of(Pgd(), 8)
    whole = Stage(name="package", attack=fab_t(targets=9, batch_size=8), noise="p", batch_size=None)
    assert whole.limited(3) is whole
    assert AutoAttack().batch_size == 250
