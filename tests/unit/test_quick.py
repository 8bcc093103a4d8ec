"""The quick evaluation: cheap attacks on all images, AutoAttack's attacks on some, an estimate."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import hypergeom
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.losses import LOSSES, margin
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.targets import nearest_classes
from robustcli.contracts.networks import conv_net, images
from robustcli.evaluation.consistency import check_derived
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluation.evidence import SURVIVES, Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.journal import FolderJournal, Journal
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.evaluation.two_phase import TwoPhases
from robustcli.evaluators import AttackContext, Evaluator, Some, Stage
from robustcli.evaluators import quick as quick_evaluator
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.quick import Quick
from robustcli.evaluators.worst_case import WorstCase
from robustcli.registry.types import Norm
from robustcli.statistics import hypergeometric_interval
from robustcli.store.evaluations import Evaluation
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

COUNT = 12
THREAT = ThreatModel("linf", Fraction(1, 50))


def labeled(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)  # type: ignore[no-any-return]


def assessed(evaluator: Evaluator, model: nn.Module, threat: ThreatModel = THREAT, seed: int = 0) -> Result:
    x = images(COUNT, 3)
    return evaluate("quick", {}, evaluator, model, x, labeled(model, x), threat, seed)


# The interval


@pytest.mark.parametrize(("total", "sampled"), [(1, 1), (12, 5), (12, 12), (30, 7), (41, 20)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_covers_at_its_nominal_rate(total: int, sampled: int, confidence: float) -> None:
    """Coverage over all samples, computed exactly for every true number."""
    intervals = [hypergeometric_interval(found, sampled, total, confidence) for found in range(sampled + 1)]
    for true in range(total + 1):
        covered = sum(
            float(hypergeom.pmf(found, total, true, sampled))
            for found, (low, high) in enumerate(intervals)
            if low <= true <= high
        )
        assert covered >= confidence - 1e-12
    for found, (low, high) in enumerate(intervals):
        assert found <= low <= high <= total - (sampled - found)
    if sampled == total:
        assert intervals == [(found, found) for found in range(total + 1)]


def test_more_images_make_the_interval_narrower() -> None:
    widths = [high - low for low, high in (hypergeometric_interval(m // 10, m, 1000) for m in (20, 100, 500, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0


@pytest.mark.parametrize("counts", [(3, 2, 10), (0, 0, 10), (1, 11, 10), (-1, 2, 10)])
def test_what_is_no_sample_is_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="are not counts of a sample"):
        hypergeometric_interval(*counts)


def test_the_estimate_follows_the_cheap_attacks_within_the_interval() -> None:
    for broken in (0, 2, 30):
        phases = TwoPhases(total=1000, nearest=0, nearest_broken=0, others=500, drawn=49, drawn_broken=broken)
        fewest, most = hypergeometric_interval(broken, 49, 500)
        found = phases.estimate
        assert (found.low, found.high) == (pytest.approx(0.5 - most / 1000), pytest.approx(0.5 - fewest / 1000))
        assert found.accuracy == found.high
    nothing = TwoPhases(total=50, nearest=0, nearest_broken=0, others=0, drawn=0, drawn_broken=0)
    assert nothing.estimate.high == 0


def test_older_results_keep_their_estimate() -> None:
    phases = TwoPhases(total=1000, nearest=10, nearest_broken=3, others=490, drawn=49, drawn_broken=2, by=("square",))
    assert phases.estimate.accuracy == pytest.approx((500 - 3 - 20) / 1000)
    low, high = hypergeometric_interval(2, 49, 490)
    assert (phases.estimate.low, phases.estimate.high) == (pytest.approx(0.497 - high / 1000), 0.497 - low / 1000)
    assert phases.disagreement is None
    assert "47.70 %" in str(phases)
    misled = TwoPhases(total=1000, nearest=10, nearest_broken=9, others=490, drawn=15, drawn_broken=8, by=("square",))
    assert "17 fell to square" in (misled.disagreement or "")
    whole = TwoPhases(total=50, nearest=10, nearest_broken=1, others=15, drawn=15, drawn_broken=0)
    assert whole.estimate.low == whole.estimate.accuracy == whole.estimate.high == 24 / 50


@pytest.mark.parametrize(("survivors", "count"), [(0, 0), (1, 1), (20, 12), (500, 12), (5000, 125)])
def test_numbers_of_some_images(survivors: int, count: int) -> None:
    assert Some(least=12, one_in=40).of(survivors) == count


@pytest.mark.parametrize(
    ("survivors", "targeted", "closer", "nearest", "sample"),
    [(20, 20, 20, 20, 10), (550, 275, 68, 34, 10), (1000, 500, 125, 62, 10), (5500, 2750, 687, 343, 55)],
)
def test_more_survivors_give_a_larger_sample_and_smaller_shares(
    survivors: int, targeted: int, closer: int, nearest: int, sample: int
) -> None:
    """About 550 of 1,000 images of MNIST survive, and 5,500 of 10,000."""
    stages = {stage.name: stage for stage in Quick().stages(AttackContext(THREAT, (3, 8, 8), 10))}
    chosen = {name: stage.nearest.of(survivors) for name, stage in stages.items() if stage.nearest}
    assert chosen == {"targeted": targeted, "closer": closer, "longer": nearest, "nudge": nearest}
    drawn = {name: stage.subset.of(survivors) for name, stage in stages.items() if stage.subset}
    assert drawn == {f"sample {name}": sample for name in ("apgd-ce", "apgd-t", "fab-t", "square")}


@pytest.mark.parametrize(("survivors", "width"), [(550, 0.305), (5500, 0.064)])
def test_the_interval_is_narrower_for_more_images(survivors: int, width: float) -> None:
    """Share of the survivors in the interval if no image of the sample breaks."""
    drawn = Quick().stages(AttackContext(THREAT, (3, 8, 8), 10))[-1].subset
    assert drawn is not None
    low, high = hypergeometric_interval(0, drawn.of(survivors), survivors)
    assert low == 0
    assert high / survivors == pytest.approx(width, abs=0.005)


def evidence_of(margins: list[float], broken_by: list[int]) -> Evidence:
    count = len(margins)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Evidence(
        numbers=torch.arange(count),
        labels=zeros,
        clean=zeros,
        broken_by=torch.tensor(broken_by),
        predictions=zeros,
        margins=torch.tensor(margins),
        sizes=torch.zeros(count),
        points={},
        stages=[],
        clean_forwards=count,
        clean_seconds=0.0,
    )


def test_the_nearest_are_the_survivors_with_the_largest_margins() -> None:
    evidence = evidence_of([-3.0, 1.0, -1.0, -2.0, -4.0], [SURVIVES, 0, SURVIVES, SURVIVES, SURVIVES])
    assert evidence.nearest(Some(least=2, one_in=5)).tolist() == [False, False, True, True, False]
    assert evidence.nearest(Some(least=9, one_in=5)).tolist() == [True, False, True, True, True]


def test_the_sample_stands_for_the_images_that_survive_what_all_nearest_got() -> None:
    """A drawn image that breaks counts unless it would have been attacked anyway."""
    evidence = evidence_of([-1.0] * 6, [SURVIVES] * 6)
    evidence.draw(Some(least=6, one_in=9), IndexedNoise(0, torch.arange(6)))
    evidence.drawn = torch.tensor([True, True, True, False, False, False])
    # Broken are a drawn one of the nearest, another drawn one, and one of the nearest that was not drawn.
    evidence.broken_by = torch.tensor([0, 0, SURVIVES, 0, SURVIVES, SURVIVES])
    evidence.leave_out(torch.tensor([True, False, False, True, False, False]))
    phases = TwoPhases.of(evidence)
    assert phases is not None
    assert (phases.others, phases.drawn, phases.drawn_broken) == (4, 2, 1)


class Sampled(Attacked):
    """The attack on a sample of the survivors only."""

    def stages(self, context: AttackContext) -> list[Stage]:
        return [replace(stage, name="sampled", subset=Some(12, 1000)) for stage in super().stages(context)]


@pytest.mark.parametrize("is_first", [True, False])
def test_in_a_worst_case_the_sample_stands_for_survivors_of_all_other_members(is_first: bool) -> None:
    """Nothing breaks in the sample, so the estimate is what the other member leaves, whatever their order."""
    model, x = conv_net(3).eval(), images(60, 3)
    y = labeled(model, x)
    members = [Sampled(attack=Fgsm(step_size=1e-6)), Attacked(attack=Pgd(steps=5, keep="fooled"))]
    worst_case = WorstCase(members=members if is_first else members[::-1])
    found = evaluate("worst_case", {}, worst_case, model, x, y, ThreatModel("linf", Fraction(1, 20)), 0)
    assert 12 < found.correct < 45, "the other member breaks many of the images that would have been drawn"
    assert found.estimate is not None
    assert found.estimate.accuracy == found.estimate.high == found.accuracy
    assert not any("misleads cheap attacks" in text for text in found.suspicions or ())


# Targets and loss


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_targets_of_a_linear_network_are_sorted_by_distance(norm: Norm, dual: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 7)).double()
    x = torch.rand(9, 3, 2, 2, dtype=torch.float64)
    y = labeled(network, x)
    weight = network[1].weight.detach()
    logits = network(x).detach()
    found = nearest_classes(network, x, y, ThreatModel(norm, Fraction(1, 10)))
    assert found.shape == (9, 6)
    for own, scores, order in zip(y.tolist(), logits, found.tolist(), strict=True):
        gaps = {
            wrong: float(
                (scores[own] - scores[wrong]) / torch.linalg.vector_norm(weight[wrong] - weight[own], ord=dual)
            )
            for wrong in range(7)
            if wrong != own
        }
        assert order == sorted(gaps, key=lambda wrong: gaps[wrong])
    assert any(row != logits[i].argsort(descending=True)[1:].tolist() for i, row in enumerate(found.tolist()))


def test_the_margin_of_probabilities_is_positive_where_a_wrong_class_wins() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, -1.0]])
    labels = torch.tensor([0, 0])
    shares = logits.softmax(1)
    found = LOSSES["probability_margin"].score(logits, labels)
    assert torch.allclose(found, torch.stack([shares[0, 2] - shares[0, 0], shares[1, 1] - shares[1, 0]]))


# The evaluation


@pytest.mark.slow
def test_drawn_images_get_what_autoattack_gives_them() -> None:
    model = conv_net(3).eval()
    quick, full = assessed(Quick(least=5), model), assessed(AutoAttack(), model)
    assert quick.sample is not None
    assert quick.estimate is not None
    assert set(quick.sample) == {"0", "1"}
    triples = zip(quick.sample, quick.survivors, full.survivors, strict=True)
    assert all(ours == theirs for mark, ours, theirs in triples if mark != "0")
    assert 0 < full.correct < COUNT
    assert quick.estimate.low <= full.accuracy <= quick.estimate.high
    assert quick.accuracy >= full.accuracy
    assert quick.is_upper_bound
    assert quick.forwards < full.forwards
    assert "This is not AutoAttack's number" in quick.warnings[0]
    names = [stage.name for stage in quick.stages]
    cheap = ["margin", "targeted", "closer", "longer", "nudge"]
    assert names == [*cheap, *(f"sample {name}" for name in ("apgd-ce", "apgd-t", "fab-t", "square"))]
    assert [stage.sampled is None for stage in quick.stages] == [True] * 5 + [False] * 4
    assert quick.stages[5].sampled == quick.sample.count("1")
    assert quick.stages[1].to_attack == quick.stages[1].entered, "few images are all near"
    again = Evaluation.model_validate(quick.to_json())
    assert (again.sample, again.estimate) == (quick.sample, quick.estimate)
    assert full.sample is None
    assert full.estimate is None


class Record(Journal):
    """Keep the numbers of the images that every stage attacked."""

    def __init__(self) -> None:
        self.attacked: dict[str, list[int]] = {}

    def keep(self, outcome: AttackOutcome) -> AttackOutcome:
        self.attacked.setdefault(outcome.stage, []).extend(outcome.numbers.tolist())
        return outcome


def test_the_ledger_marks_the_images_that_autoattack_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_evaluator, "AutoAttack", partial(AutoAttack, attacks=("fab-t",)))
    model, x, record = conv_net(3).eval(), images(COUNT, 3), Record()
    y, rng = labeled(model, x), IndexedNoise(3, torch.arange(COUNT))
    evidence = gather(Quick(steps=1, least=3), model, x, y, THREAT, rng, record)
    result = evaluate("quick", {}, Quick(steps=1, least=3), model, x, y, THREAT, 3)
    assert evidence.drawn is not None
    marked = evidence.drawn.nonzero().flatten().tolist()
    assert len(marked) == 3
    assert sorted(record.attacked["sample fab-t"]) == marked
    assert result.sample == "".join("1" if number in marked else "0" for number in range(COUNT))
    assert set(record.attacked["nudge"]) > set(marked), "the sample is drawn among the survivors"


@dataclass(frozen=True)
class Shift(Attack):
    """Move every pixel by a share of the radius."""

    share: float

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return threat.project(x + self.share * threat.radius, x)


class Witness(Attack):
    """Record the points to start at."""

    def __init__(self) -> None:
        self.starts: list[Tensor] = []

    def improve(
        self, points: Tensor, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> Tensor:
        self.starts.append(points)
        return points

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        raise AssertionError("it starts by itself")


class HandingOn(Evaluator):
    """Two shifts that hand their points on, one of them on half of the images, and a witness."""

    batch_size = 5

    def __init__(self) -> None:
        self.witness = Witness()

    def stages(self, context: AttackContext) -> list[Stage]:
        shifts = [Stage(name=f"{share}", attack=Shift(share), noise="a", hands_on=True) for share in (0.1, -0.1)]
        few = [replace(stage, nearest=Some(COUNT // 2, COUNT), batch_size=5) for stage in shifts]
        return [*few, Stage(name="witness", attack=self.witness, noise="a", starts=True, batch_size=5)]


def test_a_stage_starts_at_the_points_of_the_largest_margin(tmp_path: Path) -> None:
    model, x, threat = conv_net(3).eval(), images(COUNT, 3), ThreatModel("linf", Fraction(1, 10_000))
    y, rng = labeled(model, x), IndexedNoise(0, torch.arange(COUNT))
    tried = [Shift(share)(model, x, y, threat, rng) for share in (0.1, -0.1)]
    with torch.no_grad():
        clean, *margins = (margin(model(points), y) for points in (x, *tried))
    near = clean.argsort(descending=True)[: COUNT // 2]
    expected = x.clone()
    for row in near.tolist():
        expected[row] = tried[int(margins[1][row] > margins[0][row])][row]
    for is_resumed in (False, True):
        evaluator = HandingOn()
        evidence = gather(evaluator, model, x, y, threat, rng, FolderJournal.open(tmp_path, {}))
        assert [stage.broken for stage in evidence.stages] == [0, 0, 0]
        if not is_resumed:
            assert torch.equal(torch.cat(evaluator.witness.starts), expected)
        assert set(evidence.handed_on) == set(near.tolist())


class Misleading(nn.Module):
    """A network with inverted gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(2 * x.detach() - x)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_gradients_that_mislead_the_cheap_attacks_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_evaluator, "_LEAST", 1)  # The short search then runs on one image.
    found = assessed(Quick(least=5), Misleading(conv_net(3)).eval(), ThreatModel("linf", Fraction(1, 40)))
    assert found.verdict == "SUSPECT"
    assert any("misleads cheap attacks" in text for text in found.suspicions or ())
    assert any("square, which uses no gradients" in text for text in found.suspicions or ())
    assert found.estimate is not None
    assert found.estimate.low < found.estimate.accuracy <= found.accuracy
    assert TwoPhases.of(found) == TwoPhases.of(found.evidence) if found.evidence else False
    assert list(check_derived(found, found.to_json())) == []
    better = found.estimate.model_copy(update={"accuracy": 1.0})
    for changes in ({"estimate": better}, {"estimate": None}, {"sample": "1" * COUNT}, {"sample": None}):
        changed = found.model_copy(update=changes)
        assert any(text.startswith("estimate:") for text in check_derived(changed, changed.to_json())), changes


def test_a_share_of_the_images_draws_no_sample() -> None:
    model, x = conv_net(3).eval(), images(8, 3)
    evidence = gather(Quick(), model, x, labeled(model, x), THREAT, IndexedNoise(0, torch.arange(8)), is_share=True)
    assert [stage.name for stage in evidence.stages] == ["margin"]
    assert evidence.drawn is None


@pytest.mark.parametrize("classes", [2, 3, 4, 1000])
def test_stages_fit_any_number_of_classes(classes: int, recwarn: Any) -> None:
    stages = Quick().stages(AttackContext(THREAT, (3, 8, 8), classes))
    assert [stage.subset is None for stage in stages] == [True] * 5 + [False] * (len(stages) - 5)
    assert len({stage.name for stage in stages}) == len(stages)
