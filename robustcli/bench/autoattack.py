"""The story of `robust bench autoattack`: our engine beside the package of AutoAttack's authors, in one process."""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustcli.bench.rounds import Spread, Stopwatch, speed
from robustcli.bench.subjects import BenchSubject
from robustcli.errors import RobustCliError
from robustcli.evaluation.evaluate import settled
from robustcli.evaluation.evidence import Evidence, gather
from robustcli.evaluation.isolation import Passes, passes_counted
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.autoattack_package import Package

PACKAGE, NATIVE = "package, as it comes", "native"
_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
_MOVES, _QUERIES = 100, 5000


@dataclass
class Row:
    """What one way of evaluating came to.

    Args:
        name: of the way.
        seconds: of every round.
        survives: (n,) who is left.
        passes: forwards and gradients per image that survives and per image that an attack breaks; of the package,
            which does not tell them apart, per image that is right when clean.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    survives: Tensor = field(default_factory=lambda: torch.empty(0))
    passes: dict[str, tuple[float, float]] = field(default_factory=dict)


def bench_autoattack(
    subject: BenchSubject, rounds: int, screen: int | None, *, is_compiled: bool = False
) -> dict[str, Any]:
    """Standard AutoAttack by the package, by the native engine, and by it in haste, in turn in every round.

    Args:
        screen: also measure with this many survivors sampled.
        is_compiled: also measure with compiled searches; compiling is no part of a speed and stated by itself.
    """
    evaluators = {NATIVE: AutoAttack(), f"{NATIVE}, fast": AutoAttack(precision="fast")}
    if is_compiled:
        evaluators[f"{NATIVE}, compiled"] = AutoAttack(compile=True)
        evaluators[f"{NATIVE}, fast, compiled"] = AutoAttack(precision="fast", compile=True)
    if screen is not None:
        name = f"{NATIVE}, fast{', compiled' if is_compiled else ''}, screen {screen}"
        evaluators[name] = AutoAttack(precision="fast", compile=is_compiled, screen=screen)
    watch = Stopwatch(subject.x.device)
    with settled(subject.network, subject.x.device.type):
        clean = subject.gather(AutoAttack(), subject.threat.scaled(0)).survives
        compile_seconds = _compile(subject, watch, evaluators.values())
        rows = {PACKAGE: Row(PACKAGE), **{name: Row(name) for name in evaluators}}
        for _ in range(rounds):
            for name, row in rows.items():
                begun = watch.now()
                if name == PACKAGE:
                    row.survives, passes = _package(subject)
                    row.passes = {"right when clean": _shared(passes.forwards, passes.gradients, int(clean.sum()))}
                else:
                    found = subject.gather(evaluators[name])
                    row.survives = found.survives
                row.seconds.append(watch.now() - begun)
                if name != PACKAGE and not row.passes:
                    row.passes = _passes_of(subject, evaluators[name], found)
            rows = dict(reversed(rows.items()))
    return {
        **subject.to_json(["pyautoattack"]),
        "clean": float(clean.double().mean()),
        "clock": watch.name,
        "rounds": rounds,
        "compile_seconds": compile_seconds,
        "least_passes_per_survivor": list(least_of_autoattack(subject.threat.norm)),
        "rows": [_plain(rows[name], rows[PACKAGE]) for name in (PACKAGE, *evaluators)],
    }


def least_of_autoattack(norm: str) -> tuple[int, int]:
    """Forwards and gradients of standard AutoAttack on one survivor, if no pass were made that the outcome needs not.

    A run of APGD of so many moves takes as many gradients and one forward more; one of FAB that never comes to the
    wrong side as many forwards as gradients; Square its start and its queries. The clean image takes a forward.
    """
    runs = 5 + 5 if norm == "l1" else 1 + 9
    fab = 9 * _MOVES
    return 1 + runs * (_MOVES + 1) + fab + _QUERIES + 1, runs * _MOVES + fab


def _compile(subject: BenchSubject, watch: Stopwatch, evaluators: Iterable[AutoAttack]) -> float | None:
    """Seconds until every program was there; None where nothing is compiled.

    Raises:
        RobustCliError: torch.compile does not work here, and what is measured would not be what it is called.
    """
    begun = watch.now()
    compiled = [evaluator for evaluator in evaluators if evaluator.compile]
    for evaluator in compiled:
        first = replace(subject, x=subject.x[:2], y=subject.y[:2])
        failures = first.gather(replace(evaluator, attacks=("apgd-ce",), screen=None)).warnings
        for failure in (text for text in failures if "torch.compile" in text):
            raise RobustCliError(failure)
    return watch.now() - begun if compiled else None


def _plain(row: Row, package: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "seconds": asdict(Spread.of(row.seconds)),
        "speed": None if row is package else asdict(speed(row.seconds, package.seconds)),
        "robust": int(row.survives.sum()),
        "broken_alone": (package.survives & ~row.survives).nonzero().flatten().tolist(),
        "broken_by_the_package_alone": (row.survives & ~package.survives).nonzero().flatten().tolist(),
        "passes": row.passes,
    }


def _package(subject: BenchSubject) -> tuple[Tensor, Passes]:
    """As its users call it: on all images, with a network whose weights want gradients, in the plain format."""
    network = subject.network.requires_grad_(True)
    package = Package(version="standard", attacks=_PARTS, batch_size=250)
    with warnings.catch_warnings(), passes_counted(network) as passes:
        warnings.simplefilter("ignore", UserWarning)
        points = package(network, subject.x, subject.y, subject.threat, subject.noise())
    network.requires_grad_(False)
    with torch.no_grad():
        logits: Tensor = network(points)
    return (logits.argmax(1) == subject.y).cpu(), passes


def _passes_of(subject: BenchSubject, evaluator: AutoAttack, whole: Evidence) -> dict[str, tuple[float, float]]:
    """Those that broke are attacked once more, alone: what they do not take was spent on survivors."""
    broken = (whole.broken_by >= 0).nonzero().flatten().to(subject.x.device)
    alive = int(whole.survives.sum())
    spent = (0, 0)
    if len(broken):
        rng = subject.noise().rows(broken)
        alone = gather(evaluator, subject.network, subject.x[broken], subject.y[broken], subject.threat, rng)
        spent = (alone.forwards, alone.gradients)
    wrong = len(subject.x) - alive - len(broken)
    return {
        "survivor": _shared(whole.forwards - wrong - spent[0], whole.gradients - spent[1], alive),
        "broken": _shared(*spent, len(broken)),
    }


def _shared(forwards: int, gradients: int, images: int) -> tuple[float, float]:
    return forwards / max(images, 1), gradients / max(images, 1)
