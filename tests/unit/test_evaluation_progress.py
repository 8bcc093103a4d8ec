"""Progress of an evaluation: reports of every attack, and lines in logs."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images
from robustcli.evaluation import gather as gather_module
from robustcli.evaluation import progress as module
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.journal import NO_JOURNAL, FolderJournal, Journal
from robustcli.evaluation.progress import StageLines, StageProgress
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.worst_case import WorstCase
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

MEMBERS = [Attacked(attack=Pgd(steps=steps, keep="fooled"), batch_size=5) for steps in (1, 4)]


def reported(journal: Journal = NO_JOURNAL) -> tuple[list[StageProgress], Evidence]:
    model, x = conv_net(classes=4).eval(), images(12)
    with torch.no_grad():
        y = model(x).argmax(1)
    seen: list[StageProgress] = []
    noise = IndexedNoise(0, torch.arange(12))
    threat = ThreatModel("linf", Fraction(1, 20))
    evidence = gather(WorstCase(members=[*MEMBERS]), model, x, y, threat, noise, journal, report=seen.append)
    return seen, evidence


def test_every_batch_of_every_attack_is_reported() -> None:
    seen, evidence = reported()
    clean = [progress for progress in seen if progress.number == 0]
    assert [progress.attacked for progress in clean] == [5, 10, 12]
    first = [progress for progress in seen if progress.number == 1]
    assert [(progress.attacked, progress.entered) for progress in first] == [(0, 12), (5, 12), (10, 12), (12, 12)]
    assert first[0].images_per_second is None
    assert first[-1].title == "1/2 1 pgd"
    last = seen[-1]
    assert last.is_done
    assert (last.number, last.stages, last.seconds_left) == (2, 2, 0)
    assert [(stage.name, stage.entered, stage.broken) for stage in evidence.stages] == [
        (progress.stage, progress.entered, progress.broken) for progress in (first[-1], last)
    ]
    assert 0 < last.survivors == int(evidence.survives.sum()) < 12


def test_images_of_an_earlier_process_count_as_attacked(tmp_path: Path) -> None:
    before, _ = reported(FolderJournal.open(tmp_path / "journal", {}))
    again, _ = reported(FolderJournal.open(tmp_path / "journal", {}))
    (first,) = (progress for progress in again if progress.number == 1)
    assert (first.attacked, first.entered, first.images_per_second) == (12, 12, None)
    assert again[-1].survivors == before[-1].survivors


def test_a_long_batch_is_reported_while_it_is_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_module, "_PULSE", 0.0)
    seen, evidence = reported()
    first = [progress for progress in seen if progress.number == 1]
    within = [progress for progress in first if progress.forwards]
    # Passes within the first batch of 5 images; the count starts again with every batch.
    assert [progress.forwards for progress in within if progress.attacked == 0][:2] == [5, 10]
    assert {progress.attacked for progress in within} == {0, 5, 10}
    assert within[0].line().endswith("12 survive, 5 passes")
    again = [(stage.name, stage.broken, stage.forwards) for stage in evidence.stages]
    monkeypatch.undo()
    assert again == [(stage.name, stage.broken, stage.forwards) for stage in reported()[1].stages]


def stage(attacked: int, *, number: int = 1, rate: float | None = 10.0) -> StageProgress:
    return StageProgress("apgd-t", 1000, attacked, number, 4, 30, 700, rate)


def test_a_log_gets_a_line_every_half_a_minute_and_at_the_end_of_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    written: list[str] = []
    lines = StageLines(written.append, "evaluating aa: ")
    for attacked, seconds in ((0, 0), (100, 20), (200, 40), (300, 60), (1000, 61)):
        clock[0] = seconds
        lines(stage(attacked))
    assert written == [
        "evaluating aa: 1/4 apgd-t: 200 of 1,000 images, 30 broken, 700 survive, 10 images/s, 80 s left",
        "evaluating aa: 1/4 apgd-t: 1,000 of 1,000 images, 30 broken, 700 survive, 10 images/s",
    ]


def test_what_was_not_measured_is_not_shown() -> None:
    assert stage(0, rate=None).line() == "1/4 apgd-t: 0 of 1,000 images, 30 broken, 700 survive"
    assert stage(0, rate=None).seconds_left is None
    assert (
        StageProgress("clean", 50, 25, images_per_second=5.0).line() == "clean: 25 of 50 images, 5 images/s, 5 s left"
    )
