"""`robust bench train` counts passes exactly, compares times in turn, and calls no noise a difference."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyautoattack
import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack as Ensemble
from scipy.stats import binom
from shared import shared
from torch import Tensor, nn

from robustcli.attacks.apgd import Apgd
from robustcli.attacks.fab import fab_t
from robustcli.attacks.square import Square
from robustcli.attacks.surrogate import SurrogateCopy
from robustcli.bench import autoattack as autoattack_bench
from robustcli.bench import quick as quick_bench
from robustcli.bench import subjects
from robustcli.bench.autoattack import bench_autoattack, least_of_autoattack, passes_alone
from robustcli.bench.conformance import Comparison, average_points, bench_conformance, beyond, by_chance, holds
from robustcli.bench.quick import autoattack_on_all, bench_quick
from robustcli.bench.results.autoattack import OutcomePasses, SpeedBench, SpeedRow
from robustcli.bench.results.conformance import ConformanceBench
from robustcli.bench.results.file import parse_benches
from robustcli.bench.results.quick import FullRow, QuickBench, QuickRow
from robustcli.bench.results.training import TrainingBench
from robustcli.bench.subjects import BenchSubject, open_subject
from robustcli.bench.train import bench_train
from robustcli.bench.variants import Request
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.errors import RobustCliError
from robustcli.evaluators import autoattack as autoattack_evaluator
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.autoattack_package import Package
from robustcli.evaluators.quick import Quick
from robustcli.measuring import timing
from robustcli.measuring.counters import peak_of_run, peak_of_update
from robustcli.measuring.machine import Circumstances, Machine
from robustcli.measuring.passes import PassesAlone, least_passes, passes_by_kind
from robustcli.measuring.timing import Spread, Stopwatch, Timed, Timings, measure, speed, verdict
from robustcli.reports.benchmarks.attacks import speed_rows
from robustcli.reports.benchmarks.conformance import conformance_rows, describe_conformance, describe_quick, quick_rows
from robustcli.reports.benchmarks.tables import markdown_of
from robustcli.reports.tables import markdown_table
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.passes import Passes
from robustcli.store.provenance import this_session, version_of
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.train import run_experiment

ROOT = Path(__file__).resolve().parents[2]
BATCH = 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SAMPLE", 0.0)


@pytest.fixture
def no_torchattacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)


def request(*defenses: str, **changes: Any) -> Request:
    settings = {"architecture": "small_cnn", "width": 4, "batch_size": BATCH, "rounds": 3, "device": "cpu"}
    return Request(defenses=defenses, **(settings | changes))


# Passes: forwards, gradients of the input, gradients of the weights.

# Every attack forward has its gradient; TRADES also has two forwards of clean images, one for the attack and one
# in the loss; the worst weights cost the loss and its gradient once more.
LEAST = {
    ("natural", "none"): (1, 0, 1),
    ("pgd_at", "none"): (10 + 1, 10, 1),
    ("n_fgsm", "none"): (1 + 1, 1, 1),
    ("rs_fgsm", "none"): (1 + 1, 1, 1),
    ("trades", "none"): (1 + 10 + 2, 10, 2),
    ("natural", "awp"): (2, 0, 2),
    ("pgd_at", "awp"): (10 + 2, 10, 2),
    ("trades", "awp"): (1 + 10 + 4, 10, 4),
}


@pytest.mark.parametrize(("defense", "weights"), LEAST, ids=str)
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "channels_last": True}], ids=["plain", "bf16"])
@pytest.mark.usefixtures("no_torchattacks")
@pytest.mark.slow
def test_a_step_makes_no_pass_too_many(defense: str, weights: str, settings: dict[str, Any]) -> None:
    result = bench_train(request(defense, weights=weights, **settings)).defenses[defense]
    assert result.passes == Passes(*LEAST[defense, weights])
    assert result.least_passes == result.passes


def test_the_minimum_is_unknown_without_counted_passes() -> None:
    assert least_passes("pgd_at", "none") == Passes(11, 10, 1)
    assert least_passes("trades", "awp") == Passes(15, 10, 4)
    assert least_passes("no_such_defense", "none") is None
    assert least_passes("pgd_at", "no_such_weights") is None


def look(network: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        network(x)


def to_the_input(network: nn.Module, x: Tensor, y: Tensor) -> None:
    x = x.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(network(x), y), x)


def to_everything(network: nn.Module, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(network(x.clone().requires_grad_()), y).backward()  # type: ignore[no-untyped-call]


def to_some_weights(network: nn.Module, x: Tensor, y: Tensor) -> None:
    torch.autograd.grad(F.cross_entropy(network(x), y), [p for p in network.parameters() if p.dim() > 1])


def two_in_one(network: nn.Module, x: Tensor, y: Tensor) -> None:
    (F.cross_entropy(network(x), y) + network(x).sum()).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("does", "passes"),
    [
        (look, Passes(1, 0, 0)),
        (to_the_input, Passes(1, 1, 0)),
        (to_everything, Passes(1, 0, 1)),
        (to_some_weights, Passes(1, 0, 1)),
        (two_in_one, Passes(2, 0, 2)),
    ],
)
def test_kinds_of_passes_are_distinguished(does: Callable[[nn.Module, Tensor, Tensor], None], passes: Passes) -> None:
    network = conv_net()
    with passes_by_kind(network) as counter:
        does(network, images(BATCH), labels(BATCH))
        # Half a batch is half a pass.
        does(network, images(BATCH // 2), labels(BATCH // 2))
    does(network, images(BATCH), labels(BATCH))  # no longer counted
    counted = counter.per_image(BATCH)
    assert counted == Passes(*(1.5 * count for count in vars(passes).values()))


def test_a_network_without_a_convolution_is_refused() -> None:
    with pytest.raises(RobustCliError, match="has no convolution"), passes_by_kind(nn.Linear(2, 2)):
        pass


# Half a pass has half of the batch; the last case is GradAlign, with more backwards than forwards.
@pytest.mark.parametrize("passes", [Passes(7, 3.5, 2), Passes(3, 2, 3)])
def test_the_measured_passes_are_the_requested_ones_and_train(passes: Passes) -> None:
    model = conv_net()
    before = [parameter.clone() for parameter in model.parameters()]
    alone = PassesAlone(model, passes, images(BATCH), labels(BATCH), lr=0.1)
    with passes_by_kind(alone.trained) as counter:
        alone()
    assert counter.per_image(BATCH) == passes, "those of the held network beside it are counted with it"
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, alone.trained.parameters(), strict=True))


# Time


def test_everything_is_measured_in_turn_and_the_order_alternates() -> None:
    calls: list[str] = []

    def sample_of(name: str) -> timing.Sample:
        def sample(repeats: int) -> float:
            calls.append(name)
            return 1.0 * len(calls)

        return sample

    seconds = measure({name: sample_of(name) for name in "abc"}, 3)
    # A warm-up of each, and one more of the first to find how often each is repeated.
    assert "".join(calls) == "abc" + "a" + "abc" + "cba" + "abc"
    assert seconds == {"a": [5, 10, 11], "b": [6, 9, 12], "c": [7, 8, 13]}


def test_a_short_step_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(Stopwatch, "now", lambda self: float(next(ticks)))
    monkeypatch.setattr(timing, "_SAMPLE", 5.0)
    calls: list[str] = []
    seconds = measure({"a": Timed(lambda: calls.append("a"), Stopwatch(CPU))}, 2)
    assert len(calls) == 1 + 1 + 2 * 5
    assert seconds == {"a": [1 / 5, 1 / 5]}


def test_speed_is_compared_round_by_round() -> None:
    # Twice as fast in every round, although the rounds differ by more than that.
    assert speed([1, 10, 4], [2, 20, 8]) == Spread(median=2, low=2, high=2)
    assert speed([2, 2, 2], [1, 2, 6]) == Spread(median=1, low=0.5, high=3)


@pytest.mark.parametrize(
    ("ratio", "again", "said"),
    [
        ((1.2, 1.1, 1.3), (1.0, 0.9, 1.05), "faster"),
        ((0.8, 0.7, 0.85), (1.0, 0.9, 1.05), "slower"),
        # One round disagrees.
        ((1.2, 0.99, 1.3), (1.0, 0.98, 1.01), "within the spread"),
        ((0.8, 0.7, 1.01), (1.0, 0.98, 1.01), "within the spread"),
        # Repeats of the same step differ as much.
        ((1.2, 1.1, 1.3), (1.1, 1.0, 1.2), "within the spread"),
        ((0.8, 0.7, 0.85), (0.9, 0.8, 1.0), "within the spread"),
        # Repeats differ in one direction only, which does not make a difference significant.
        ((1.01, 0.99, 1.02), (0.9, 0.8, 0.95), "within the spread"),
    ],
)
def test_a_difference_within_the_spread_is_not_called_one(
    ratio: tuple[float, float, float], again: tuple[float, float, float], said: str
) -> None:
    assert verdict(Spread(*ratio), Spread(*again)) == said


def test_seconds_are_relative_to_the_limit_and_speeds_to_a_peer() -> None:
    timings = Timings({"ours": [2, 3], "limit": [1, 2], "peer": [4, 4]})
    assert timings.over("limit", "ours") == Spread(1.75, 1.5, 2)
    assert timings.over("limit", "peer") == Spread(3, 2, 4)
    assert vars(timings.beside("peer", "ours")) == pytest.approx({"median": 5 / 3, "low": 4 / 3, "high": 2})
    assert timings.beside("other", "ours") is None


def test_ours_and_its_repetition_get_no_verdict() -> None:
    timings = Timings({"ours": [1, 1], "ours again": [1, 1], "slow": [2, 3]})
    assert [timings.verdict(name) for name in timings.seconds] == [None, None, "faster"]
    assert [timings.ratio(name) for name in timings.seconds] == [None, Spread(1, 1, 1), Spread(2.5, 2, 3)]


def test_a_peak_is_what_is_held_at_once() -> None:
    kept = []

    def run() -> None:
        first = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(500)
        kept.append(torch.zeros(250))
        del first

    # 1000 and 500 numbers of four bytes; the memory of the last run counts as held before.
    assert [peak_of_run(run, CPU), peak_of_run(run, CPU)] == [6000, 6000]
    assert peak_of_run(lambda: None, CPU) == 0


def test_output_during_memory_counting_is_printed_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    older = [torch.zeros(1000)]

    def run() -> None:
        older.pop()
        os.write(2, b"ours\n")

    assert peak_of_run(run, CPU) == 0
    assert capfd.readouterr().err == "ours\n"


def test_an_update_takes_its_gradients_and_not_what_it_fetches_once() -> None:
    weight = nn.Linear(1000, 1, bias=False)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        weight.weight.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    peaks = [peak_of_update(weight, step, CPU) for _ in range(2)]
    assert peaks[0] == peaks[1]
    assert 4000 <= peaks[0] < 12000, "without the momentum, which is as large"


# The whole


# Replaces torchattacks: its PGD records its arguments and process, and returns the images unchanged.
PEER = """
import json, os
from pathlib import Path

import torch


class PGD:
    def __init__(self, model, **settings):
        self.model = model
        self.settings = settings

    def __call__(self, x, y):
        weight = next(self.model.parameters())
        is_last = [t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight)]
        note = {**self.settings, "channels_last": all(is_last), "bf16": torch.is_autocast_enabled(x.device.type)}
        path = Path(__file__).with_name(f"{os.getpid()}.json")
        notes = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps(notes if note in notes else [*notes, note]))
        return x
"""


@dataclass(frozen=True)
class Peer:
    """The records of the stand-in, without repeats."""

    folder: Path

    @property
    def here(self) -> list[dict[str, Any]]:
        return list(json.loads((self.folder / f"{os.getpid()}.json").read_text()))

    @property
    def elsewhere(self) -> list[dict[str, Any]]:
        (path,) = (path for path in self.folder.glob("*.json") if path.stem != str(os.getpid()))
        return list(json.loads(path.read_text()))


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    (tmp_path / "torchattacks.py").write_text(PEER)
    monkeypatch.delitem(sys.modules, "torchattacks", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "torchattacks", importlib.import_module("torchattacks"))
    return Peer(tmp_path)


def names_of(results: TrainingBench, defense: str) -> list[str]:
    return [row.name for row in results.defenses[defense].rows]


OWN_ROWS = ["ours", "ours again", "its passes alone"]
PLAIN = "torchattacks, fp32 in the plain format"


@pytest.mark.slow
def test_torchattacks_is_given_the_same_attack_here_and_elsewhere(peer: Peer) -> None:
    changes = {"precision": "bf16", "channels_last": True, "architecture": "preact_resnet18"}
    results = bench_train(request("pgd_at", "natural", **changes))
    assert names_of(results, "pgd_at") == [*OWN_ROWS, "torchattacks, set as ours", PLAIN, "torchattacks, as it comes"]
    assert names_of(results, "natural") == OWN_ROWS
    assert results.notes == []
    attack = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10}
    plain = {**attack, "channels_last": False, "bf16": False}
    assert [*peer.here] == [{**attack, "channels_last": True, "bf16": True}, plain]
    assert [*peer.elsewhere] == [plain]
    # The stand-in returns the images unchanged, so that only their training remains.
    for row in results.defenses["pgd_at"].rows[3:]:
        assert row.passes == Passes(1, 0, 1)
        assert row.peak_bytes > 0


def test_with_perturbed_weights_it_is_no_longer_the_same_method(peer: Peer) -> None:
    results = bench_train(request("pgd_at", weights="awp"))
    assert names_of(results, "pgd_at") == OWN_ROWS
    assert results.notes == []


@pytest.mark.usefixtures("no_torchattacks")
def test_without_torchattacks_its_rows_are_left_out_with_a_message() -> None:
    results = bench_train(request("pgd_at"))
    assert names_of(results, "pgd_at") == OWN_ROWS
    (note,) = results.notes
    assert "torchattacks" in note
    assert "pip install torchattacks" in note
    # No message unless the user asked for it.
    assert bench_train(request("natural")).notes == []


@pytest.mark.slow
def test_rows_and_ratios_belong_together(peer: Peer) -> None:
    results = bench_train(request("pgd_at"))
    assert set(results.to_json()) == {
        "schema", "provenance", "machine", "peers", "settings", "notes", "defenses",
    }  # fmt: skip
    assert results.peers == {"torchattacks": version_of("torchattacks")}
    assert ", torchattacks " in results.describe()
    assert bench_train(request("natural")).peers == {}, "it was not measured"
    settings = results.settings
    assert (settings.batch_size, settings.image, settings.rounds) == (BATCH, [3, 32, 32], 3)
    assert (settings.precision, settings.clock) == ("fp32", "cpu")
    assert not settings.channels_last
    assert not settings.compile
    assert settings.network == "small_cnn width 4"
    rows = results.defenses["pgd_at"].rows
    for row in rows:
        assert row.images_per_second == pytest.approx(BATCH / row.seconds.median)
        assert 0 < row.seconds.low <= row.seconds.median <= row.seconds.high
    ours, again, *others = rows
    assert ours.ratio is None
    assert again.verdict is None
    assert {row.verdict for row in others} <= {"faster", "slower", "within the spread"}
    ratios = [row.ratio for row in (again, *others) if row.ratio is not None]
    assert len(ratios) == len(rows) - 1
    assert all(ratio.low <= ratio.median <= ratio.high for ratio in ratios)
    # The stand-in does not attack, so it takes a fraction of our time.
    assert all(ratio.high < 1 for ratio in ratios[2:])
    # With the defaults of torchattacks, nothing needs to change in between.
    limit, as_ours, comes = others
    assert limit.over_limit == comes.beside_torchattacks == Spread(1, 1, 1)
    assert comes.over_limit.high < 1
    assert as_ours.over_limit.high < 1
    assert ours.beside_torchattacks is not None
    assert ours.beside_torchattacks.high < 1
    assert parse_benches(json.loads(json.dumps(results.to_json())), "file") == [results], "read as it was written"


def test_an_unknown_name_is_refused_with_the_known_names() -> None:
    with pytest.raises(RobustCliError, match="unknown name 'pgd_ta' in defenses; did you mean 'pgd_at'"):
        bench_train(request("pgd_ta"))
    with pytest.raises(RobustCliError, match="unknown name 'resnet' in architectures"):
        bench_train(request("natural", architecture="resnet"))
    with pytest.raises(RobustCliError, match="unknown name 'wap' in weights"):
        bench_train(request("natural", weights="wap"))


@pytest.mark.usefixtures("no_torchattacks")
def test_compiled_steps_and_compiled_passes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def compiled(call: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def program(network: nn.Module, x: Tensor) -> Tensor:
            rows.append(len(x))
            return call(network, x)

        return program

    monkeypatch.setattr(torch, "compile", compiled)
    result = bench_train(request("natural", is_compiled=True))
    assert result.settings.compile
    assert result.defenses["natural"].passes == Passes(*LEAST["natural", "none"])
    # Ours, ours again and the passes alone: one try each, then once unmeasured, and in each of three rounds; ours
    # once more to find its length. The first and the last twice for their peak.
    assert len(rows) == 3 * (1 + 1 + 3) + 1 + 2 * 2


def test_a_compiler_that_fails_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"), pytest.raises(RobustCliError, match=r"^--compile: "):
        bench_train(request("natural", is_compiled=True))


@pytest.mark.slow
def test_the_format_is_that_of_training_unless_it_is_given() -> None:
    narrow = {"architecture": "preact_resnet18"}
    # Of 4 channels, which AVX2 would not take in this format.
    is_chosen = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert bench_train(request("natural", **narrow)).settings.channels_last is is_chosen
    assert bench_train(request("natural", **narrow, channels_last=False)).settings.channels_last is False


def test_the_width_is_16_where_there_is_one_and_none_was_given() -> None:
    assert bench_train(request("natural", architecture="small_cnn", width=None)).settings.architecture["width"] == 16


DIGITS = """\
name: digits
data: {name: digits, val_size: 50, train_size: 1200}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.05}
defense: {name: pgd_at, steps: 2}
train: {epochs: 5, batch_size: 32, lr: 1e-2, optimizer: adam, weight_decay: 0, check_examples: 20, device: cpu}
evaluate: {}
"""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that some attacks break and others do not."""

    def train(folder: Path) -> None:
        (folder / "spec.yaml").write_text(DIGITS, encoding="utf-8")
        run_experiment(ExperimentSpec.read(folder / "spec.yaml"), folder / "runs", Screen(is_quiet=True))

    (best,) = shared(tmp_path_factory, "digits", train).rglob("best.pt")
    return best


def subject_of(digits: Path, examples: int = 24, **changes: Any) -> BenchSubject:
    settings: dict[str, Any] = {"norm": None, "eps": None, "data": None, "device": "cpu", **changes}
    return open_subject(str(digits), (), examples=examples, **settings)


class QuickSquare(Square):
    """A hundredth of the queries, since these tests are about counts and not strength."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "queries": 50})


class QuickPackage(Ensemble):
    def __init__(self, *words: Any, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.square.n_queries = 50


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack_evaluator, "Square", QuickSquare)
    monkeypatch.setattr(pyautoattack, "AutoAttack", QuickPackage)


_STEPS = 5


class QuickestApgd(Apgd):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "steps": _STEPS})


class QuickestPackage(QuickPackage):
    def __init__(self, *words: Any, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = _STEPS


@pytest.fixture
def quickest(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attack of AutoAttack in a few steps, for tests that do not count passes."""
    monkeypatch.setattr(autoattack_evaluator, "Apgd", QuickestApgd)
    monkeypatch.setattr(autoattack_evaluator, "fab_t", lambda **settings: fab_t(**{**settings, "steps": _STEPS}))
    monkeypatch.setattr(pyautoattack, "AutoAttack", QuickestPackage)


@pytest.mark.slow
def test_a_subject_takes_threat_and_images_from_its_checkpoint_or_the_command(digits: Path) -> None:
    own = subject_of(digits)
    assert (own.name, str(own.threat), len(own.x)) == ("digits", "linf 0.05", 24)
    other = subject_of(digits, norm="l2", eps="1/2")
    assert str(other.threat) == "l2 0.5"
    assert str(subject_of(digits, norm="l2", eps="0.8").threat) == "l2 0.8", "exact"
    with pytest.raises(RobustCliError, match=r"threat\.eps: 'far' is not a number"):
        subject_of(digits, eps="far")


@pytest.mark.slow
def test_engines_are_measured_on_the_same_images(digits: Path, quick: None) -> None:
    subject = subject_of(digits)
    before = {name: value.clone() for name, value in subject.network.state_dict().items()}
    result = bench_autoattack(subject, rounds=1, screen=2)
    names = [row.name for row in result.rows]
    assert names == [
        "package, as it comes",
        "native",
        "native again",
        "native, fast",
        "native, fast, sample first 2",
        "its passes alone",
    ]
    package, native, again, *_, alone = result.rows
    assert (package.speed, package.verdict, alone.verdict) == (None, None, None)
    assert {native.verdict, again.verdict} <= {"faster", "slower", "within the spread"}
    assert again.robust == native.robust
    assert alone.over_limit == Spread(1, 1, 1)
    assert isinstance(native.passes, OutcomePasses)
    assert alone.passes == OutcomePasses(survivor=(6912, 1900), broken=native.passes.broken)
    for row in result.rows:
        assert row.over_limit.low <= row.seconds.high / alone.seconds.low
        assert row.over_limit.high >= row.seconds.low / alone.seconds.high
    assert native.speed is not None
    assert native.speed.low <= native.speed.median <= native.speed.high
    assert native.robust is not None
    assert package.robust is not None
    assert 0 < native.robust < 24 * result.clean
    assert abs(native.robust - package.robust) == abs(
        len(native.broken_alone) - len(native.broken_by_the_package_alone)
    )
    survivor, broken = native.passes.survivor, native.passes.broken
    # 49.5 times fewer queries than published; FAB makes a second forward where it is on the wrong side.
    assert survivor[1] == pytest.approx(1900, rel=0.02)
    assert 6912 - 4950 <= survivor[0] <= 6912 - 4950 + 920
    assert broken[1] < survivor[1] / 4
    for name, value in subject.network.state_dict().items():
        assert torch.equal(value, before[name])
    *_, limit = speed_rows([result])
    assert limit["engine"] == "its passes alone"
    assert limit["passes per survivor"] == "6,912 + 1,900"
    assert parse_benches(json.loads(json.dumps(result.to_json())), "file") == [result], "read as it was written"


@pytest.mark.slow
def test_compiled_engines_are_measured_where_they_compile(
    digits: Path, quickest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(digits)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    result = bench_autoattack(subject, rounds=2, screen=2, is_compiled=True)
    assert [row.name for row in result.rows] == [
        "package, as it comes", "native", "native again", "native, fast", "native, compiled",
        "native, fast, compiled", "native, fast, compiled, sample first 2", "its passes alone",
    ]  # fmt: skip
    assert (result.compile_seconds or 0) > 0
    monkeypatch.setattr(torch, "compile", lambda *_, **__: None)
    with pytest.raises(RobustCliError, match=r"without torch\.compile"):
        bench_autoattack(subject, rounds=1, screen=None, is_compiled=True)


def test_the_limit_makes_the_least_passes_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, gradients = 0, 0

    class Counting(SurrogateCopy):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal looks, gradients
            looks, gradients = looks + len(x) * (not x.requires_grad), gradients + len(x) * x.requires_grad
            return super().forward(x)

    monkeypatch.setattr(autoattack_bench, "SurrogateCopy", Counting)
    monkeypatch.setattr(autoattack_bench, "_QUERIES", 50)
    network, x = conv_net().eval(), images(6)
    subject = BenchSubject("net", network, x, network(x).argmax(1), ThreatModel("linf", "1/10"))
    # Two survive, three break within 4 forwards and 3 gradients each, one is wrong when clean.
    clean = torch.tensor([True] * 5 + [False])
    survives = torch.tensor([True] * 2 + [False] * 4)
    passes_alone(subject, clean, survives, (4, 3))()
    least = least_of_autoattack("linf")
    assert gradients == 2 * least[1] + 3 * 3
    # The minimum includes a clean forward of every image.
    assert looks + gradients == 6 + 2 * (least[0] - 1) + 3 * 4


@pytest.mark.slow
def test_the_package_runs_in_the_precision_of_its_users(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bool]] = {"package": set(), "native": set()}

    class Noting(Package):
        def __call__(self, model: nn.Module, x: Tensor, *words: Any) -> Tensor:
            seen["package"].add(torch.backends.cudnn.allow_tf32)
            return x

    def gather(*words: Any, **settings: Any) -> Any:
        seen["native"].add(torch.backends.cudnn.allow_tf32)
        return own(*words, **settings)

    own = subjects.gather
    monkeypatch.setattr(subjects, "gather", gather)
    monkeypatch.setattr(autoattack_bench, "Package", Noting)
    monkeypatch.setattr(autoattack_bench, "AutoAttack", partial(AutoAttack, attacks=("apgd-ce",)))
    monkeypatch.setattr(autoattack_bench, "_QUERIES", 1)
    bench_autoattack(subject_of(digits, examples=4), rounds=1, screen=None)
    assert seen == {"package": {True}, "native": {False}}


def test_the_least_is_counted_from_the_budgets() -> None:
    assert least_of_autoattack("linf") == (1 + 10 * 101 + 900 + 5001, 10 * 100 + 900)
    assert least_of_autoattack("l1")[1] == 10 * 100 + 900


@pytest.mark.slow
def test_engines_are_compared_attack_by_attack(digits: Path, quickest: None) -> None:
    result = bench_conformance(subject_of(digits), "fp32")
    assert [row.part for row in result.rows] == ["apgd-ce", "apgd-t", "fab-t", "square", "standard"]
    for row in result.rows:
        difference = len(row.broken_by_package_alone) - len(row.broken_by_native_alone)
        assert row.native - row.package == difference
        assert row.points == pytest.approx(100 * difference / 24)
        assert row.interval[0] <= row.points <= row.interval[1]
    assert len(list(conformance_rows([result]))) == 5
    some = bench_conformance(subject_of(digits), "fp32", only=["apgd-ce", "fab-t"], runs=2).rows
    assert [(row.part, row.runs) for row in some] == [("apgd-ce", 2), ("fab-t", 1)], "FAB-T draws nothing"
    assert some[0].native >= result.rows[0].native
    assert some[1].native == result.rows[2].native
    assert "standard" in describe_conformance([result])


HEAD = Circumstances(
    provenance=this_session("cpu"),
    machine=Machine(processor="p", cores=1, threads=1, load=0.5, torch="t"),
    peers={"pyautoattack": "1.2"},
)


@pytest.mark.slow
def test_quick_evaluations_are_compared_with_autoattack(
    digits: Path, quickest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_bench, "Quick", partial(Quick, steps=1, least=2))
    subject = subject_of(digits)
    full = autoattack_on_all(subject)
    assert full.robust == int(subject.gather(AutoAttack()).survives.sum())
    assert full.seconds > 0
    result = bench_quick(subject, full, runs=2)
    assert [row.seed for row in result.rows] == [0, 1]
    for row in result.rows:
        assert row.interval[0] <= row.estimate <= row.interval[1] <= row.robust / 24
    assert len(list(quick_rows([result]))) == 2
    assert parse_benches(result.to_json(), "q.json") == [result]
    assert markdown_of({"q.json": [result]})[0] == "quick evaluation"


def test_quick_evaluations_are_judged_by_their_gap_and_time() -> None:
    row = QuickRow(seed=0, estimate=0.504, interval=(0.4, 0.504), robust=504, is_misled=False, seconds=2.0)
    worse = QuickRow(seed=1, estimate=0.499, interval=(0.4, 0.499), robust=504, is_misled=False, seconds=4.0)
    far = row.model_copy(update={"estimate": 0.51, "seconds": 1.0})

    def described(*rows: QuickRow, images: int = 1000) -> str:
        full = FullRow(robust=500, seconds=40.0)
        bench = QuickBench(
            **vars(HEAD), subject="a", threat="b", images=images, clock="cpu", autoattack=full, rows=list(rows)
        )
        return describe_quick([bench])

    text = described(row, worse)
    assert "from 1,000 images on: mean absolute gap 0.25 points (goal 0.3: met)" in text
    assert "10.0 to 20.0 times as long (goal 15: missed), 1 of 2 intervals contain" in text
    text = described(far)
    assert "gap 1.00 points (goal 0.3: missed), AutoAttack takes 40.0 to 40.0 times as long (goal 15: met)" in text
    assert described(row, images=800).startswith("at fewer images")
    text = described(row, images=10_000)
    assert text.startswith("from 10,000 images on")
    assert "20.0 to 20.0 times as long (goal 30: missed)" in text
    assert "(goal 30: met)" in described(far, images=10_000)


def planted(native: str, package: str) -> ConformanceBench:
    masks = (torch.tensor([[flag == "1" for flag in flags]]) for flags in (native, package))
    rows = [Comparison("square", *masks).row()]
    return ConformanceBench(**vars(HEAD), subject="a", threat="b", images=1, precision="fp32", rows=rows)


def test_a_weaker_attack_is_not_called_equal() -> None:
    assert holds([planted("1" * 500, "1" * 500)])
    assert holds([planted("0" * 9 + "1" * 491, "1" * 500)]), "a stronger one is"
    weaker = planted("1" * 500, "0" * 9 + "1" * 491)
    assert not holds([weaker]), "beyond chance"
    assert beyond([weaker]) == ["square on a, b"]
    equal = planted("1" * 500, "1" * 500)
    assert holds([weaker, *[equal] * 19]), "one of 20 is what chance makes"
    assert not holds([weaker, weaker, weaker, *[planted("0" * 9 + "1" * 491, "1" * 500)] * 17]), "three of 20 are not"
    assert not holds([planted("1" * 500, "00" + "1" * 498)]), "beyond the tolerance"
    slightly = planted("1" * 500, "0" + "1" * 499)
    assert holds([slightly])
    assert average_points([slightly, equal]) == pytest.approx({"square": 0.1})
    (row,) = planted("0011", "1001").rows
    assert (row.broken_by_native_alone, row.broken_by_package_alone) == ([0], [2])


@pytest.mark.parametrize(("comparisons", "most"), [(1, 0), (2, 0), (3, 1), (20, 2), (85, 5)])
def test_chance_puts_some_comparisons_beyond_their_interval(comparisons: int, most: int) -> None:
    assert by_chance(comparisons) == most
    assert 1 - float(binom.cdf(most, comparisons, 0.025)) <= 0.05 < 1 - float(binom.cdf(most - 1, comparisons, 0.025))


def test_runs_are_pairs_of_image_and_noise() -> None:
    native, package = torch.tensor([[True, False], [True, True]]), torch.tensor([[True, True], [False, True]])
    row = Comparison("square", native, package).row()
    assert (row.runs, row.native, row.package, row.points) == (2, 3, 3, 0)
    assert (row.broken_by_native_alone, row.broken_by_package_alone) == ([1], [0])
    bench = ConformanceBench(**vars(HEAD), subject="a", threat="b", images=2, precision="fp32", rows=[row])
    (cells,) = conformance_rows([bench])
    assert list(cells.values())[2:6] == ["2 x 2", "square", "75.0", "75.0"]


def test_tables_are_markdown() -> None:
    text = markdown_table(("a", "b"), [("1", "2|3")], numbers=("b",))
    assert text == "| a | b |\n| --- | ---: |\n| 1 | 2\\|3 |\n"


def test_stored_results_become_one_table_each() -> None:
    planted_bench = planted("0011", "1001").model_copy(update={"images": 4})
    (row,) = planted_bench.rows
    more = row.model_copy(update={"runs": 2, "native": 4, "package": 3})
    other = more.model_copy(update={"part": "fab-t", "runs": 1, "native": 1})
    repeated = planted_bench.model_copy(update={"rows": [more]})
    fast = planted_bench.model_copy(update={"precision": "fast", "rows": [row, other]})
    name, text = markdown_of({"a.json": [planted_bench, repeated], "b.json": [fast]})
    assert name == "conformance"
    lines = text.splitlines()
    assert lines[0] == "| network | threat | images | square | fab-t |"
    assert lines[2:4] == [
        "| a | b | 4 | 50.0 / 37.5 (1, 1; 2 runs) |  |",
        "| a, fast | b | 4 | 50.0 / 50.0 (1, 1) | 25.0 / 75.0 (1, 1) |",
    ]
    assert lines[-3].endswith("confirmed.")
    assert lines[-1] == "cpu; p, 1 core, 1 thread, load 0.5; torch t, pyautoattack 1.2."
    ones = Spread(1, 1, 1)
    native = SpeedRow(
        name="native", seconds=ones, speed=None, verdict=None, over_limit=ones, robust=1, broken_alone=[],
        broken_by_the_package_alone=[], passes=OutcomePasses(survivor=(1, 1), broken=(1, 1)),
    )  # fmt: skip
    speed = SpeedBench(
        **vars(HEAD), subject="a", threat="b", images=1, clean=1.0, clock="cpu", rounds=1, compile_seconds=None,
        least_passes_per_survivor=[1, 1], rows=[native],
    )  # fmt: skip
    assert markdown_of({"s.json": [speed]})[0] == "speed"
    with pytest.raises(RobustCliError, match=r"a\.json is of conformance, s\.json is of speed; give those of one"):
        markdown_of({"a.json": [planted_bench], "s.json": [speed]})


@pytest.mark.parametrize("junk", [{}, [], [{}], [1], {"bench": "speedrun", "rows": []}])
def test_other_files_are_no_results(junk: Any) -> None:
    with pytest.raises(RobustCliError, match=r"x\.json: not a result of `robust bench"):
        parse_benches(junk, "x.json")


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (ROOT / "experiments" / "results" / "bench").glob("*.json") if path.stem != "plan"),
    ids=lambda path: path.stem,
)
def test_stored_results_are_read_and_written_back(path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    benches = parse_benches(raw, path)
    assert markdown_of({str(path): benches})[1].startswith("| ")
    written = [bench.to_json() for bench in benches]
    for bench, before in zip(written, raw if isinstance(raw, list) else [raw], strict=True):
        # Files from before the header named other packages have no peers.
        assert bench == {"peers": {}, **before}
