"""The record of an evaluation does not depend on batches, interruptions or workers."""

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.deepfool import DeepFool
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluation.consistency import check_lines
from robustcli.evaluation.evaluate import evaluate, evaluate_share
from robustcli.evaluation.evidence import SURVIVES, WRONG_WHEN_CLEAN, Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.journal import FolderJournal, Journal
from robustcli.evaluation.per_image import (
    ImageResult,
    decoded,
    per_image_results,
    read_adversarial_examples,
    read_per_image,
    write_adversarial_examples,
    write_per_image,
)
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.worst_case import WorstCase
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

LINF = ThreatModel("linf", Fraction(1, 20))
COUNT = 24


def case(count: int = COUNT) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images, and labels of which every fourth is wrong."""
    model, x = conv_net(classes=4).eval(), images(count)
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, torch.where(torch.arange(count) % 4 == 3, (y + 1) % 4, y)


def noise(count: int = COUNT, seed: int = 0) -> IndexedNoise:
    return IndexedNoise(seed, torch.arange(count))


@dataclass(frozen=True)
class Ladder(Evaluator):
    """An attack for each given strength, weak ones first, in batches of a given size."""

    steps: tuple[int, ...] = (0, 1, 4)
    batch_size: int = 7

    def stages(self, case: AttackContext) -> list[Stage]:
        return [
            Stage(name=f"pgd-{steps}", attack=Pgd(steps=steps, keep="fooled"), noise="pgd", batch_size=self.batch_size)
            for steps in self.steps
        ]


def facts(evidence: Evidence) -> list[object]:
    """All results for images, without times and passes."""
    points = [evidence.points.get(number) for number in evidence.numbers.tolist()]
    return [
        per_image_results(evidence),
        [None if point is None else point.tolist() for point in points],
        [(stage.name, stage.entered, stage.broken) for stage in evidence.stages],
    ]


def test_every_break_is_recorded_with_its_attack() -> None:
    model, x, y = case()
    evidence = gather(Ladder(), model, x, y, LINF, noise())
    assert {stage.name for stage in evidence.stages} == {"pgd-0", "pgd-1", "pgd-4"}
    assert all(stage.broken for stage in evidence.stages), "each stage is meant to break somebody"
    assert int((evidence.broken_by == WRONG_WHEN_CLEAN).sum()) == COUNT // 4
    assert bool((evidence.broken_by == SURVIVES).any())
    entered = COUNT - COUNT // 4
    for number, stage in enumerate(evidence.stages):
        assert stage.entered == entered
        assert stage.broken == int((evidence.broken_by == number).sum())
        entered -= stage.broken
    broken = (evidence.broken_by >= 0).nonzero().flatten().tolist()
    assert sorted(evidence.points) == broken
    for number in broken:
        point = evidence.points[number]
        with torch.no_grad():
            logits = model(point[None])[0]
        assert int(logits.argmax()) == int(evidence.predictions[number]) != int(y[number])
        wrong = torch.cat([logits[: y[number]], logits[y[number] + 1 :]]).max()
        assert float(wrong - logits[y[number]]) == pytest.approx(float(evidence.margins[number]), abs=1e-5)
        assert float((point - x[number]).abs().max()) == pytest.approx(float(evidence.sizes[number]), abs=1e-7)
    alive = evidence.survives
    assert bool((evidence.margins[alive] < 0).all())
    assert bool((evidence.sizes[alive] == 0).all())


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_batches_change_nothing(batch_size: int) -> None:
    model, x, y = case()
    whole = gather(Ladder(batch_size=100), model, x, y, LINF, noise())
    cut = gather(Ladder(batch_size=batch_size), model, x, y, LINF, noise())
    assert torch.equal(whole.broken_by, cut.broken_by)
    assert torch.allclose(whole.margins, cut.margins, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", *(pytest.param(norm, marks=pytest.mark.full) for norm in ("l2", "l1"))])
@pytest.mark.slow
def test_autoattack_does_not_depend_on_batches(norm: str) -> None:
    model, x, y = case()
    threat = ThreatModel(norm, {"linf": Fraction(1, 50), "l2": Fraction(1, 3), "l1": Fraction(1)}[norm])  # type: ignore[arg-type,index]
    masks = [
        gather(AutoAttack(attacks=("apgd-ce", "apgd-t", "fab-t"), batch_size=size), model, x, y, threat, noise())
        for size in (3, 50)
    ]
    assert torch.equal(masks[0].survives, masks[1].survives)
    assert 0 < int(masks[0].survives.sum()) < COUNT - COUNT // 4


@dataclass
class Dying(Journal):
    """A journal whose process dies after a number of calls."""

    journal: FolderJournal
    left: int

    def outcomes(self, stage: str, images: Container[int] | None = None) -> Iterable[AttackOutcome]:
        return self.journal.outcomes(stage, images)

    def keep(self, outcome: AttackOutcome) -> AttackOutcome:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.journal.keep(outcome)


@pytest.mark.slow
def test_a_killed_evaluation_resumes_after_any_call(tmp_path: Path) -> None:
    model, x, y = case()
    whole = gather(Ladder(), model, x, y, LINF, noise())
    calls = sum(-(-stage.entered // 7) for stage in whole.stages)
    for left in range(calls):
        journal = FolderJournal.open(tmp_path / str(left), {"weights": "1"})
        with pytest.raises(KeyboardInterrupt):
            gather(Ladder(), model, x, y, LINF, noise(), Dying(journal, left))
        again = gather(Ladder(), model, x, y, LINF, noise(), FolderJournal.open(tmp_path / str(left), {"weights": "1"}))
        assert facts(again) == facts(whole)
        assert (again.forwards, again.gradients) == (whole.forwards, whole.gradients)


def test_what_is_in_the_journal_is_not_attacked_again(tmp_path: Path) -> None:
    model, x, y = case()
    journal = FolderJournal.open(tmp_path / "journal", {})
    first = gather(Ladder(), model, x, y, LINF, noise(), journal)

    @dataclass(frozen=True)
    class Broken(Attack):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
            raise AssertionError("attacked again")

    @dataclass(frozen=True)
    class Again(Ladder):
        def stages(self, case: AttackContext) -> list[Stage]:
            return [replace(stage, attack=Broken()) for stage in super().stages(case)]

    assert facts(gather(Again(), model, x, y, LINF, noise(), journal)) == facts(first)


@pytest.mark.parametrize("shares", [2, 3, 30])
@pytest.mark.slow
def test_shares_add_up(tmp_path: Path, shares: int) -> None:
    """Each process attacks its own images, and the last one finds every image done once."""
    model, x, y = case()
    settings = ("ladder", {}, Ladder(), model, x, y, LINF, 0)
    whole = evaluate(*settings)  # type: ignore[arg-type]
    journal = FolderJournal.open(tmp_path / "journal", {})
    for share in range(min(shares, COUNT)):
        evaluate_share(*settings[2:], (share, shares), journal)  # type: ignore[arg-type]
    struck: list[tuple[str, int]] = []
    for stage in ("pgd-0", "pgd-1", "pgd-4"):
        struck += [(stage, number) for strike in journal.outcomes(stage) for number in strike.numbers.tolist()]
    assert len(set(struck)) == len(struck)
    merged = evaluate(*settings, journal=journal)  # type: ignore[arg-type]
    assert whole.evidence is not None
    assert merged.evidence is not None
    # Batches of other images move margins by rounding.
    assert torch.equal(merged.evidence.broken_by, whole.evidence.broken_by)
    assert torch.allclose(merged.evidence.margins, whole.evidence.margins, atol=1e-4)
    assert sorted(merged.evidence.points) == sorted(whole.evidence.points)
    assert merged.stages == [
        stage.model_copy(update={"seconds": merged.stages[number].seconds}) for number, stage in enumerate(whole.stages)
    ]


@pytest.mark.parametrize(
    "evaluator",
    [AutoAttack(attacks=("apgd-ce", "fab-t"), sample_first=5), AutoAttack(attacks=("apgd-ce",), engine="reference")],
    ids=["sampled", "package"],
)
@pytest.mark.slow
def test_shares_leave_to_the_whole_what_depends_on_it(tmp_path: Path, evaluator: AutoAttack) -> None:
    """A sample is drawn from all survivors, and the package draws noise per batch."""
    model, x, y = case(100)
    settings = ("autoattack", {}, evaluator, model, x, y, ThreatModel("linf", Fraction(1, 100)), 0)
    journal = FolderJournal.open(tmp_path / "journal", {})
    for share in range(2):
        evaluate_share(*settings[2:], (share, 2), journal)  # type: ignore[arg-type]
    assert not [strike for name in ("fab-t", "package") for strike in journal.outcomes(name)]
    merged, whole = evaluate(*settings, journal=journal), evaluate(*settings)  # type: ignore[arg-type]
    assert merged.survivors == whole.survivors
    assert merged.warnings == whole.warnings
    assert [(stage.broken, stage.sampled) for stage in merged.stages] == [
        (stage.broken, stage.sampled) for stage in whole.stages
    ]


def test_shares_may_be_cut_otherwise_the_second_time(tmp_path: Path) -> None:
    model, x, y = case()
    settings = ("ladder", {}, Ladder(), model, x, y, LINF, 0)
    journal = FolderJournal.open(tmp_path / "journal", {})
    evaluate_share(*settings[2:], (0, 2), journal)  # type: ignore[arg-type]
    for share in range(3):
        evaluate_share(*settings[2:], (share, 3), journal)  # type: ignore[arg-type]
    merged, whole = evaluate(*settings, journal=journal), evaluate(*settings)  # type: ignore[arg-type]
    assert merged.survivors == whole.survivors
    assert [stage.broken for stage in merged.stages] == [stage.broken for stage in whole.stages]


def test_images_attacked_twice_count_once(tmp_path: Path) -> None:
    """Two processes may start at the same time with different batch sizes."""
    model, x, y = case()
    whole = gather(Ladder(), model, x, y, LINF, noise(), FolderJournal.open(tmp_path / "7", {}))
    gather(Ladder(batch_size=5), model, x, y, LINF, noise(), FolderJournal.open(tmp_path / "5", {}))
    for path in (tmp_path / "5").glob("*.npz"):
        if not (tmp_path / "7" / path.name).exists():
            # Adversarial images are in a separate file.
            for part in (path, path.with_suffix(".points")):
                part.rename(tmp_path / "7" / part.name)
    again = gather(Ladder(), model, x, y, LINF, noise(), FolderJournal.open(tmp_path / "7", {}))
    assert torch.equal(again.broken_by, whole.broken_by)
    assert [stage.broken for stage in again.stages] == [stage.broken for stage in whole.stages]


def test_the_journal_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    FolderJournal.open(tmp_path / "journal", {"weights": "a" * 64, "seed": "0"})
    with pytest.raises(RobustCliError, match=r"weights: the journal has aaaaaaaaaaaa\.\.\., this evaluation bbbbbb"):
        FolderJournal.open(tmp_path / "journal", {"weights": "b" * 64, "seed": "0"})
    with pytest.raises(RobustCliError, match="seed: the journal has 0, this evaluation 1; code: the journal has None"):
        FolderJournal.open(tmp_path / "journal", {"weights": "a" * 64, "seed": "1", "code": "c"})


def test_a_damaged_part_of_the_journal_is_named(tmp_path: Path) -> None:
    model, x, y = case()
    journal = FolderJournal.open(tmp_path / "journal", {})
    gather(Ladder(), model, x, y, LINF, noise(), journal)
    part = sorted(journal.path.glob("*.npz"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RobustCliError, match=rf"{part.name}: cannot be read .* remove this file"):
        gather(Ladder(), model, x, y, LINF, noise(), journal)
    part.unlink()
    whole = gather(Ladder(), model, x, y, LINF, noise())
    assert facts(gather(Ladder(), model, x, y, LINF, noise(), journal)) == facts(whole)


def test_stages_whose_names_are_cut_alike_keep_their_findings_apart(tmp_path: Path) -> None:
    journal = FolderJournal.open(tmp_path / "journal", {})
    model, x, y = case()
    kept = {}
    for name in ("pgd 1", "PGD 1", "pgd-1", "pgd"):
        gather(Named(name), model, x, y, LINF, noise(), journal)
        kept[name] = sorted(path.name for path in journal.path.glob("*.npz"))
    assert len(kept["pgd"]) == 4 * math.ceil((COUNT - COUNT // 4) / 7)
    for name in kept:
        assert {strike.stage for strike in journal.outcomes(name)} == {name}


@dataclass(frozen=True)
class Named(Evaluator):
    """One attack under a given name."""

    name: str
    batch_size: int = 7

    def stages(self, case: AttackContext) -> list[Stage]:
        return [Stage(name=self.name, attack=Pgd(steps=0), noise="pgd", batch_size=self.batch_size)]


def test_two_stages_of_one_name_are_refused() -> None:
    @dataclass(frozen=True)
    class Twins(Evaluator):
        batch_size: int = 4

        def stages(self, case: AttackContext) -> list[Stage]:
            return [Stage(name="pgd", attack=Pgd(steps=1), noise="pgd")] * 2

    model, x, y = case()
    with pytest.raises(EvaluationError, match="two stages have one name: pgd, pgd"):
        gather(Twins(), model, x, y, LINF, noise())


def test_members_of_a_worst_case_keep_their_names_apart() -> None:
    model, x, y = case()
    pgd = Attacked(attack=Pgd(steps=1))
    evidence = gather(WorstCase(members=[pgd, pgd]), model, x, y, LINF, noise())
    assert [stage.name for stage in evidence.stages] == ["1 pgd", "2 pgd"]
    # Equal attacks draw equal noise: the second finds nothing new.
    assert evidence.stages[1].broken == 0 < evidence.stages[0].broken


class Wavering(nn.Module):
    """Adds noise to its logits in every forward."""

    def __init__(self, spread: float, inner: nn.Module) -> None:
        super().__init__()
        self.spread, self.inner = spread, inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits + self.spread * torch.randn_like(logits)


@pytest.mark.slow
def test_a_random_model_is_judged_by_a_majority_of_passes() -> None:
    inner, x, y = case()
    model = Wavering(0.02, inner).eval()
    spread: list[Tensor] = []
    for evaluator in (AutoAttack(attacks=("apgd-ce",)), AutoAttack(version="rand", attacks=("apgd-ce",))):
        masks = [gather(evaluator, model, x, y, ThreatModel("linf", Fraction(0)), noise(seed=s)) for s in range(8)]
        spread.append(torch.stack([mask.survives for mask in masks]).double().var(0).sum())
    assert spread[1] < spread[0] / 2
    once, twice = (gather(AutoAttack(version="rand"), model, x[:6], y[:6], LINF, noise(6)) for _ in range(2))
    assert facts(once) == facts(twice)


def test_a_random_model_may_lose_a_vote_on_the_clean_image_itself() -> None:
    """An attack that finds nothing returns the clean image, and a later vote on it may go wrong."""
    inner, x, _ = case()
    with torch.no_grad():
        y = inner(x).argmax(1)
    model = Wavering(0.1, inner).eval()
    threat = ThreatModel("linf", Fraction(1, 100_000))

    class Voted(Attacked):
        votes = 3

    evidence = gather(Voted(attack=DeepFool(steps=1, targets=1)), model, x, y, threat, noise())
    lines = per_image_results(evidence)
    assert any(line.size == 0 for line in lines if line.broken_by not in ("", "clean"))
    threats = dict.fromkeys(["", "clean", "deep_fool"], threat)
    assert list(check_lines(lines, threats, is_random=True)) == []
    (problem,) = check_lines(lines, threats, is_random=False)
    assert "size 0 where" in problem


def found(threat: ThreatModel, steps: int = 10, count: int = COUNT) -> tuple[nn.Module, Tensor, Tensor, Evidence]:
    model, x, _ = case(count)
    x = (255 * x).round() / 255
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, y, gather(Ladder((steps,)), model, x, y, threat, noise(count))


def test_per_image_results_are_read_as_it_was_written(tmp_path: Path) -> None:
    _, _, _, evidence = found(LINF)
    lines = per_image_results(evidence)
    write_per_image(tmp_path / "ledger.csv", lines)
    assert read_per_image(tmp_path / "ledger.csv") == [
        replace(line, margin=pytest.approx(line.margin, rel=1e-7), size=pytest.approx(line.size, rel=1e-7))
        for line in lines
    ]
    assert {line.broken_by for line in lines} == {"", "pgd-10"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "not per-image results"),
        (lambda text: text.replace("image", "picture", 1), "not per-image results"),
        (lambda text: text.replace("\n1,", "\none,", 1), "line 3: invalid literal"),
        (lambda text: text.replace("\n1,", "\n1,2,", 1), "line 3: "),
    ],
)
def test_damaged_per_image_results_are_refused(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    path = tmp_path / "ledger.csv"
    write_per_image(path, [ImageResult(number, 0, 0, "", 0, -1.0, 0.0) for number in range(3)])
    path.write_text(change(path.read_text()))
    with pytest.raises(RobustCliError, match=message):
        read_per_image(path)


@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", Fraction(1, 2)), ThreatModel("l1", Fraction(4))], ids=str)
def test_every_adversarial_example_lies_inside_and_fools_the_model(tmp_path: Path, threat: ThreatModel) -> None:
    model, x, y, evidence = found(threat)
    write_adversarial_examples(tmp_path / "examples.npz", evidence, model, x, y)
    seen: list[int] = []
    for encoding, numbers, codes in read_adversarial_examples(tmp_path / "examples.npz"):
        seen += numbers.tolist()
        points = decoded(encoding, codes, x[torch.from_numpy(numbers)])
        assert bool(threat.contains(points, x[torch.from_numpy(numbers)]).all())
        with torch.no_grad():
            assert bool((model(points).argmax(1) != y[torch.from_numpy(numbers)]).all()) or not len(numbers)
    assert sorted(seen) == sorted(evidence.points)
    assert seen


@pytest.mark.slow
def test_adversarial_examples_take_the_smallest_encoding_that_holds(tmp_path: Path) -> None:
    """A wide ball leaves room for steps of 1/255; one narrower than a step does not."""
    kinds = []
    for eps in (Fraction(1, 10), Fraction(1, 300)):
        model, x, y, evidence = found(ThreatModel("linf", eps), steps=30, count=200)
        write_adversarial_examples(tmp_path / "examples.npz", evidence, model, x, y)
        kinds.append({encoding: len(n) for encoding, n, _ in read_adversarial_examples(tmp_path / "examples.npz")})
    assert kinds[0]["steps"] > 0.7 * sum(kinds[0].values())
    assert kinds[1]["steps"] == 0 < kinds[1]["halves"]


def test_evaluators_are_protocols() -> None:
    evaluator: Evaluator = Ladder()
    assert evaluator.batch_size == 7
