"""`robust plan`: passes are exact, times add up, and no files remain."""

import json
import time
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.attacks import Attack
from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.apgd import Apgd
from robustcli.attacks.fab import Fab
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.settings import with_settings
from robustcli.attacks.square import Square
from robustcli.bench.autoattack import least_of_autoattack
from robustcli.cli.plan import _share
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import RobustCliError
from robustcli.evaluation.gather import gather
from robustcli.evaluators import Evaluator, Stage
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.clean import Clean
from robustcli.evaluators.corruptions import Corruptions
from robustcli.evaluators.other_threat import Under
from robustcli.measuring import timing
from robustcli.measuring.memory import fitting, free_bytes
from robustcli.reports.plan import lines_of, sweep_table, tables_of
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_yaml
from robustcli.store.provenance import Sizes
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.plan import plan as plan_module
from robustcli.workflows.plan import updates
from robustcli.workflows.plan.evaluations import BROKEN_PASSES, EvaluationCost, Probe, StageCost
from robustcli.workflows.plan.images import images_of
from robustcli.workflows.plan.plan import Request, evaluation_costs, plan
from robustcli.workflows.plan.result import Bounds, RowPlan
from robustcli.workflows.plan.savings import changes_of
from robustcli.workflows.plan.updates import Trial
from robustcli.workflows.plan.work import Line, PassTimes, Work

CPU = torch.device("cpu")
THREAT = ThreatModel("linf", "1/10")
TINY = """\
name: tiny
data: {name: digits, val_size: 50, train_size: 96}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 2}
train: {epochs: 3, batch_size: 32, lr: 1e-2, optimizer: adam, select: robust, check_examples: 20, device: cpu}
evaluate:
  clean: {name: clean, examples: 60}
  pgd: {name: attack, attack: {name: pgd, steps: 30, restarts: 2, keep: fooled}, examples: 60}
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SAMPLE", 0.0)


def spec_of(text: str = TINY) -> ExperimentSpec:
    return ExperimentSpec.check(parse_yaml(text, "tiny.yaml"))


def network() -> nn.Module:
    return conv_net().eval().requires_grad_(False)


# Evaluations


def passes_in_full(attack: Attack, model: nn.Module) -> tuple[float, float]:
    """Passes of the attack on an image that it cannot break."""
    x = images(3)
    y = model(x).argmax(1)
    rng = IndexedNoise(0, torch.arange(3))
    with no_early_exit():
        evidence = gather(Attacked(attack=attack), model, x, y, THREAT.scaled(1e-4), rng)
    assert bool(evidence.survives.all())
    return evidence.stages[0].forwards / 3, evidence.stages[0].gradients / 3


@pytest.mark.parametrize(
    "attack",
    [
        Pgd(steps=23),
        Pgd(steps=31, restarts=3, keep="fooled"),
        Pgd(steps=17, restarts=2, keep="best", loss="kl"),
        Apgd(steps=40),
        Apgd(steps=30, loss="targeted_dlr", targets=4),
        Square(queries=400),
        # There may be no steps.
        Pgd(steps=0),
    ],
    ids=str,
)
def test_passes_of_a_survivor_are_those_that_the_whole_attack_makes(attack: Attack) -> None:
    model = network()
    (stage,) = Probe(model, images(8), THREAT).cost(Attacked(attack=attack), 8, 0.5).stages
    # Some of Square's proposals change nothing and need no pass, and some passes hold proposals in vain.
    near = 0.1 if isinstance(attack, Square) else None
    work = stage.of_survivor
    assert (work.forwards, work.gradients) == pytest.approx(passes_in_full(attack, model), rel=near)


def passes_of_a_survivor(cost: EvaluationCost) -> tuple[float, float]:
    works = [stage.of_survivor for stage in cost.stages]
    return 1 + sum(work.forwards for work in works), sum(work.gradients for work in works)


@pytest.mark.slow
def test_autoattack_takes_its_published_budget() -> None:
    cost = Probe(network(), images(8), THREAT).cost(AutoAttack(), 8, 0.5)
    forwards, gradients = passes_of_a_survivor(cost)
    least = least_of_autoattack("linf")
    assert gradients == least[1]
    # FAB looks once more wherever it is on the wrong side. After each stage copy and network are compared, and one
    # forward counts. Proposals of Square that change nothing need no pass, and some passes hold proposals in vain.
    assert least[0] - 0.5 * 5000 <= forwards <= least[0] + 9 * 101 + 4 * 3 + 0.5 * 5000
    assert [stage.name for stage in cost.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    reference = Probe(network(), images(8), THREAT).cost(AutoAttack(engine="reference"), 8, 0.5)
    assert passes_of_a_survivor(reference)[1] == gradients
    assert [stage.name for stage in reference.stages] == [stage.name for stage in cost.stages]
    assert "estimated from" in reference.notes[0]
    assert "sampled" in Probe(network(), images(8), THREAT).cost(AutoAttack(sample_first=3), 8, 0.5).notes[0]


@pytest.mark.parametrize(
    ("attack", "exits_early"),
    [(Pgd(), False), (Pgd(keep="fooled"), True), (Apgd(), True), (Fab(), True), (Square(), True)],
)
def test_whether_an_attack_exits_early_is_seen(attack: Attack, exits_early: bool) -> None:
    (stage,) = Probe(network(), images(8), THREAT).cost(Attacked(attack=attack), 8, 0.5).stages
    assert stage.exits_early is exits_early
    assert stage.of_broken.passes == pytest.approx(BROKEN_PASSES if exits_early else stage.of_survivor.passes)


def test_passes_follow_from_survivors() -> None:
    robust = Bounds(0.6, 0.6)

    def passes(*stages: StageCost) -> float:
        return EvaluationCost(100, 50, stages).passes(robust).low

    # Of 100 images 60 survive, 20 break, 20 are wrong when clean.
    work = Work(forwards=100, gradients=100)
    whole, leaving = StageCost("a", work, exits_early=False), StageCost("a", work, exits_early=True)
    assert passes() == 100
    assert passes(whole) == 100 + 80 * 200
    assert passes(leaving) == pytest.approx(100 + 60 * 200 + 20 * 20)
    # The second attack gets only survivors, or a sample of them.
    assert passes(whole, replace(leaving, sample=5)) == 100 + 80 * 200 + 5 * 200


# Time


class Clock:
    """Clock that only a `Costed` network and a `Costed` attack advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for name in ("perf_counter", "thread_time"):
            monkeypatch.setattr(time, name, lambda: self.now)


class CostedNetwork(nn.Module):
    """Network whose passes cost a fixed time for a call and some more for each image."""

    def __init__(self, clock: Clock, times: PassTimes) -> None:
        super().__init__()
        self.network, self.clock, self.times = network(), clock, times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x)
        self._spend(self.times.forward, len(x))
        if logits.requires_grad:
            logits.register_hook(lambda _: self._spend(self.times.gradient, len(x)))  # type: ignore[no-untyped-call]
        return logits

    def _spend(self, line: Line, images: int) -> None:
        self.clock.now += line.call + images * line.image


@dataclass(frozen=True, kw_only=True)
class CostedPgd(Pgd):
    """PGD that spends a fixed time on every step of a batch besides its passes."""

    clock: Clock
    step: float = 0.3

    def __call__(self, model: Any, x: Any, y: Any, threat: ThreatModel, rng: Any) -> Any:
        self.clock.now += self.step * self.steps * self.restarts
        return super().__call__(model, x, y, threat, rng)


TIMES = PassTimes(forward=Line(call=0.2, image=0.001), gradient=Line(call=0.4, image=0.003))


def test_times_of_passes_are_a_fixed_part_and_one_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    found = PassTimes.measured(CostedNetwork(Clock(monkeypatch), TIMES), images(16))
    assert astuple(found.forward) == pytest.approx(astuple(TIMES.forward))
    assert astuple(found.gradient) == pytest.approx(astuple(TIMES.gradient))
    # By 16 images a call costs little for each of them.
    assert found.per_image(16) == pytest.approx((0.6 / 16 + 0.004) / 2)


@pytest.mark.parametrize("is_on_the_network", [True, False], ids=["on the network", "on another one"])
@pytest.mark.parametrize("kind", ["pgd", "apgd", "square"])
def test_small_batches_cost_what_their_calls_and_steps_cost(
    kind: str, is_on_the_network: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    attack: Attack = {
        "pgd": CostedPgd(steps=40, restarts=2, clock=clock),
        "apgd": Apgd(steps=40, loss="targeted_dlr", targets=3, batch_size=8),
        "square": Square(queries=400, batch_size=8),
    }[kind]
    model, x = CostedNetwork(clock, TIMES), images(16)
    evaluator = Attacked(attack=attack, batch_size=8)
    # Ten survivors are two batches of five.
    y = model(x[:10]).argmax(1)
    with no_early_exit():
        rng = IndexedNoise(0, torch.arange(10))
        took = sum(
            gather(evaluator, model, x[part], y[part], THREAT.scaled(1e-4), rng.rows(torch.arange(10)[part]))
            .stages[0]
            .seconds
            for part in (slice(5), slice(5, 10))
        )
    other = PassTimes(forward=Line(0.01, 0.0), gradient=Line(0.02, 0.0))
    own = TIMES if is_on_the_network else other
    probe = Probe(CostedNetwork(clock, own), x, THREAT, own)
    cost = probe.cost(evaluator, 10, 1.0)
    clean = TIMES.seconds(Work(forwards=10, forward_calls=2))
    assert cost.seconds(Bounds(1, 1), TIMES).high - clean == pytest.approx(took, rel=0.1)


def test_an_evaluation_under_another_threat_is_measured_there() -> None:
    @dataclass(frozen=True)
    class Noting(Attack):
        seen: list[str]

        def __call__(self, model: Any, x: Any, y: Any, threat: ThreatModel, rng: Any) -> Any:
            self.seen.append(threat.norm)
            model(x)
            return x

    attack = Noting([])
    evaluator: Evaluator = Under(norm="l2", eps="1/2", evaluator=Attacked(attack=attack))  # type: ignore[arg-type]
    Probe(network(), images(8), THREAT).cost(evaluator, 8, 0.5)
    assert set(attack.seen) == {"l2"}
    # At radius 0 no attack is run.
    nothing = Probe(network(), images(8), ThreatModel("linf", 0)).cost(Attacked(attack=Pgd()), 8, 0.5)
    assert nothing.stages == ()


def test_the_package_of_the_authors_is_estimated_from_the_native_attacks() -> None:
    found, native = (
        Probe(network(), images(8), THREAT).cost(AutoAttack(attacks=("apgd-ce",), engine=engine), 8, 0.5)
        for engine in ("reference", "native")
    )
    assert [stage.name for stage in found.stages] == ["apgd-ce"]
    assert passes_of_a_survivor(found) == passes_of_a_survivor(native)
    assert found.notes == ("package: estimated from apgd-ce of robustcli, which are usually faster",)


def test_an_attack_may_name_the_setting_of_its_length() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Walk(Attack):
        walks: int = 40

        length = "walks"

        def __call__(self, model: nn.Module, x: Any, y: Any, threat: Any, rng: Any) -> Any:
            for _ in range(self.walks):
                model(x)
            return x

    (cost,) = Probe(network(), images(8), THREAT).cost(Attacked(attack=Walk()), 8, 0.5).stages
    assert cost.of_survivor.forwards == 41


def test_an_attack_without_steps_is_measured_as_it_is() -> None:
    class Still(Attack):
        def __call__(self, model: nn.Module, x: Any, y: Any, threat: Any, rng: Any) -> Any:
            model(x)
            return x

    stage = Stage(name="still", attack=Still(), noise="still")
    assert with_settings(stage.attack, steps=5) is stage.attack
    (cost,) = Probe(network(), images(8), THREAT).cost(Attacked(attack=Still()), 8, 0.5).stages
    assert (cost.of_survivor.forwards, cost.of_survivor.gradients) == (2, 0)


def test_corruptions_are_a_forward_pass_each() -> None:
    evaluator = Corruptions(kinds=("contrast", "fog"), severities=(5,), each="all")
    cost = Probe(network(), images(8), THREAT).cost(evaluator, 8, 1.0)
    assert cost.passes(Bounds(1.0, 1.0)) == Bounds(8 * 3, 8 * 3)


# Updates


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    spec = spec_of()
    data, _ = images_of(spec, CPU)
    return Trial(spec, data, CPU, tmp_path)


def test_the_requested_number_of_updates_is_made_from_the_middle(trial: Trial) -> None:
    assert trial.updates == 9
    # The second of three epochs begins with update 3.
    assert len(trial.run(2)) == 2
    assert trial.training.updates == 3 + 2
    # Across the end of an epoch, without its check.
    assert len(trial.run(5)) == 5
    assert len(trial.run(100)) == 9, "there are no more"


def test_no_epoch_is_checked_or_stored(trial: Trial, tmp_path: Path) -> None:
    trial.run(9)
    assert list(tmp_path.iterdir()) == []
    trial.epoch_end()
    assert [path.name for path in tmp_path.rglob("*.pt")].count("best.pt") == 1


def test_the_time_of_an_update_is_the_time_between_two_updates(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    ticks = iter(range(1000))

    monkeypatch.setattr(updates, "wall", lambda _: float(next(ticks)))
    assert trial.run(7) == [1.0] * 7


# Images


def test_random_images_stand_for_those_of_a_known_data_set(tmp_path: Path) -> None:
    text = TINY.replace(
        "digits, val_size: 50, train_size: 96", f"mnist, val_size: 50, root: {tmp_path}, download: true"
    )
    data, replaced = images_of(spec_of(text), CPU)
    assert replaced is not None
    assert replaced.startswith("random 1x28x28")
    assert "MNIST is not in" in replaced
    assert data.sizes == Sizes(train=59_950, val=50, test=10_000)
    assert list(tmp_path.iterdir()) == [], "nothing is fetched"
    text = TINY.replace("digits, val_size", f"image_folder, root: {tmp_path}, val_size")
    with pytest.raises(RobustCliError, match=r"data\.root"):
        images_of(spec_of(text), CPU)


# The whole


def test_a_plan_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    announced: list[float] = []
    request = Request(spec=spec_of(), updates=4, robust=(0.2, 0.8), startup=100.0, announce=announced.append)
    planned = plan(request)
    assert list(tmp_path.iterdir()) == []
    found = planned.to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["images"]["replaced"] is None
    assert found["passes_per_image"] == {"forwards": 3, "input_gradients": 2, "weight_gradients": 1}
    assert 100 < found["start"] < 200
    training = found["training"]
    assert (training["updates"], training["measured"]) == (9, 4)
    assert training["seconds"] == pytest.approx(9 * training["update"])
    # Three updates to warm up, and four measured ones; rough, because a pass of one image costs more than its share.
    assert announced == [pytest.approx(7 * training["update"], rel=50, abs=0)]
    assert announced[0] > 0.1 * training["update"]
    for bound in ("low", "high"):
        parts = [found["start"], training["seconds"]]
        parts += [cost["seconds"][bound] for cost in found["evaluations"].values()]
        assert found["seconds"][bound] == pytest.approx(sum(parts) + 3 * training["check"][bound])
    # A clean pass and a final check; a restart has one forward more than gradients. Broken images take 20 passes.
    survivor = 2 * 31 + 1 + 60
    assert found["evaluations"]["pgd"]["passes"]["high"] == pytest.approx(60 + 60 * (0.8 * survivor + 0.1 * 20))
    assert found["evaluations"]["clean"]["survivors"] is None
    assert found["memory"]["peak"] > 0
    assert [row["change"] for row in found["savings"]] == ["train.precision=bf16", "train.compile=true"]
    assert found["savings"][-1]["verdict"] == "not measured (--compile)"
    assert len(tables_of(planned)) == 2
    assert any("are assumed" in line for line in lines_of(planned))


def test_monitors_of_single_step_methods_are_a_part_of_the_check() -> None:
    passes = {}
    for defense in ("{name: pgd_at, steps: 2}", "n_fgsm"):
        spec = spec_of(TINY.replace("{name: pgd_at, steps: 2}\ntrain", f"{defense}\ntrain"))
        data, _ = images_of(spec, CPU)
        checks, _ = evaluation_costs(Request(spec=spec), data, Probe.tiny(data, THREAT))
        passes[defense] = sum(check.passes(Bounds(0.3, 0.3)).low for check in checks)
    # 10 + 4 steps, without early exit, on 20 images; those that are wrong when clean are not attacked.
    monitor = Probe.tiny(data, THREAT).cost(Attacked(attack=Pgd(steps=14)), 20, 0.45)
    difference = passes["n_fgsm"] - passes["{name: pgd_at, steps: 2}"]
    assert difference == pytest.approx(monitor.passes(Bounds(0.3, 0.3)).low)


def test_survivors_are_estimated_from_the_claim(tmp_path: Path) -> None:
    spec = spec_of(TINY + "claim: {source: nobody, metrics: {pgd: 0.7}}\n")
    found = plan(Request(spec=spec, updates=3, savings=False))
    assert found.evaluations["pgd"].survivors == Bounds(0.7, 0.7)
    assert found.savings == []
    other = plan(Request(spec=spec_of(), updates=3, savings=False))
    assert other.evaluations["pgd"].survivors == Bounds(0.3, 0.6)


def test_a_stage_that_does_not_fit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")

    monkeypatch.setattr(Trial, "run", exhausted)
    found = plan(Request(spec=spec_of(), updates=3))
    assert found.fits is False
    assert "train.batch_size=16" in found.notes[0]
    assert tables_of(found) == []
    assert any("does not fit: an update of 32 images" in line for line in lines_of(found))
    assert sweep_table("family", {"a": RowPlan(found, 1)}).row_count == 2


def test_a_failed_cpu_allocation_is_reported_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried")

    request = Request(spec=spec_of(), updates=3, savings=False)
    with monkeypatch.context() as patched:
        patched.setattr(Trial, "run", exhausted)
        (note,) = plan(request).notes
    assert note.startswith("does not fit: an update of 32 images ran out of memory on cpu ([enforce")
    with pytest.raises(RuntimeError, match="of ours"), fitting():
        raise RuntimeError("a mistake of ours")


def test_free_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "free_bytes", lambda _: 2**30)
    found = plan(Request(spec=spec_of(), updates=3, savings=False))
    assert any(line.endswith("resident; 1.0 GiB were free") for line in lines_of(found))
    free = free_bytes(CPU)
    assert free is None or free > 0


@pytest.mark.parametrize(
    ("name", "settings"), [("fw_at_adapt", ", monitor_images: 32"), ("dynamic_at", ""), ("fat", "")]
)
def test_defenses_that_adapt_say_what_is_assumed(name: str, settings: str) -> None:
    spec = spec_of(TINY.replace("{name: pgd_at, steps: 2}", f"{{name: {name}{settings}}}"))
    notes = plan(Request(spec=spec, updates=3, savings=False)).notes
    assert notes[0].startswith(name)


def test_only_what_the_spec_leaves_open_is_tried() -> None:
    spec = spec_of()
    bf16, compiled = {"precision": "bf16"}, {"compile": True}
    assert changes_of(spec, with_compile=False) == {"train.precision=bf16": bf16}
    assert changes_of(spec, with_compile=True) == {
        "train.precision=bf16": bf16,
        "train.compile=true": compiled,
        "train.precision=bf16 train.compile=true": {**bf16, **compiled},
    }
    fast = replace(spec, train=replace(spec.train, precision="bf16"))
    assert changes_of(fast, with_compile=True) == {"train.compile=true": compiled}
    fast = replace(fast, train=replace(fast.train, compile=True))
    assert changes_of(fast, with_compile=True) == {}


def test_a_share_is_one_number_or_two() -> None:
    assert _share("0.5") == (0.5, 0.5)
    assert _share("0.3-0.6") == (0.3, 0.6)
    for wrong in ("half", "0.6-0.3", "1.2", "0.1-0.2-0.3", ""):
        with pytest.raises(RobustCliError, match="--robust"):
            _share(wrong)


def test_a_clean_evaluation_is_one_forward() -> None:
    assert Probe(network(), images(8), THREAT).cost(Clean(), 8, 0.5).passes(Bounds(0.1, 0.9)) == Bounds(8, 8)
