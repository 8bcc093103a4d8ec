"""The story of `robust bench autoattack`: our engine beside the package of AutoAttack's authors, in one process.

The limit is what the outcome takes at least: the passes of images that survive and of those that break, alone.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.attacks.surrogate import SurrogateCopy
from robustcli.bench.subjects import BenchSubject
from robustcli.errors import RobustCliError
from robustcli.evaluation.evidence import Evidence, gather
from robustcli.evaluation.passes import Passes, count_passes
from robustcli.evaluation.restore import restored_generators, restored_model
from robustcli.evaluators import chunks
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.autoattack_package import Package
from robustcli.measuring.timing import ALONE, Spread, Stopwatch, speed, verdict
from robustcli.runtime.precision import full_precision

PACKAGE, NATIVE, NATIVE_AGAIN = "package, as it comes", "native", "native again"
_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
_MOVES, _QUERIES, _FAB_TARGETS = 100, 5000, 9


@dataclass
class Row:
    """What one way of evaluating came to.

    Args:
        name: of the way.
        seconds: of every round.
        survives: (n,) who is left; None of the passes alone, which decide nothing.
        passes: forwards and gradients per image that survives and per image that an attack breaks; of the package,
            which does not tell them apart, per image that is right when clean.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    survives: Tensor | None = None
    passes: dict[str, tuple[float, float]] = field(default_factory=dict)


def bench_autoattack(
    subject: BenchSubject, rounds: int, screen: int | None, *, is_compiled: bool = False
) -> dict[str, Any]:
    """Standard AutoAttack by the package, by the native engine, and by it in haste, in turn in every round.

    Args:
        screen: also measure with this many survivors sampled.
        is_compiled: also measure with compiled searches; compiling is no part of a speed and stated by itself.
    """
    evaluators = {NATIVE: AutoAttack(), NATIVE_AGAIN: AutoAttack(), f"{NATIVE}, fast": AutoAttack(precision="fast")}
    if is_compiled:
        evaluators[f"{NATIVE}, compiled"] = AutoAttack(compile=True)
        evaluators[f"{NATIVE}, fast, compiled"] = AutoAttack(precision="fast", compile=True)
    if screen is not None:
        name = f"{NATIVE}, fast{', compiled' if is_compiled else ''}, screen {screen}"
        evaluators[name] = AutoAttack(precision="fast", compile=is_compiled, screen=screen)
    watch = Stopwatch(subject.x.device)
    # The package runs in whatever precision torch has where its user says nothing; all else in single precision.
    with restored_model(subject.network), restored_generators(subject.x.device):
        with full_precision(subject.x.device.type):
            clean = subject.gather(AutoAttack(), subject.threat.scaled(0)).survives
            compile_seconds = _warmed_up(subject, watch, evaluators.values())
        rows = {name: Row(name) for name in (PACKAGE, *evaluators, ALONE)}
        alone: Callable[[], None] | None = None
        for _ in range(rounds):
            for name, row in rows.items():
                if name == PACKAGE:
                    _time_package(subject, watch, row, int(clean.sum()))
                    continue
                with full_precision(subject.x.device.type):
                    if name in evaluators:
                        _time_native(subject, watch, row, evaluators[name])
                        continue
                    # Last in the first round: by then it is known which images survive, and what the others took.
                    if alone is None:
                        row.passes = _least_of(subject, rows[NATIVE])
                        alone = passes_alone(subject, rows[NATIVE], clean)
                    begun = watch.now()
                    alone()
                    row.seconds.append(watch.now() - begun)
            rows = dict(reversed(rows.items()))
    return {
        **subject.to_json(["pyautoattack"]),
        "clean": float(clean.double().mean()),
        "clock": watch.name,
        "rounds": rounds,
        "compile_seconds": compile_seconds,
        "least_passes_per_survivor": list(least_of_autoattack(subject.threat.norm)),
        "rows": [_plain(rows[name], rows) for name in (PACKAGE, *evaluators, ALONE)],
    }


def least_of_autoattack(norm: str) -> tuple[int, int]:
    """Forwards and gradients of standard AutoAttack on one survivor, if no pass were made that the outcome needs not.

    A run of APGD of so many moves takes as many gradients and one forward more; one of FAB that never comes to the
    wrong side as many forwards as gradients; Square its start and its queries. The clean image takes a forward.
    """
    parts = _least_parts(norm)
    forwards = 1 + sum(side_by_side * (looks + gradients) for side_by_side, looks, gradients in parts)
    return forwards, sum(side_by_side * gradients for side_by_side, _, gradients in parts)


def _least_parts(norm: str) -> list[tuple[int, int, int]]:
    """Of each attack on a survivor: points that go through the network together, forwards alone, and gradients."""
    tries, targets = (5, 5) if norm == "l1" else (1, 9)
    return [
        (1, tries, tries * _MOVES),
        (targets, 1, _MOVES),
        (_FAB_TARGETS, 0, _MOVES),
        (1, _QUERIES + 1, 0),
    ]


def passes_alone(subject: BenchSubject, native: Row, clean: Tensor) -> Callable[[], None]:
    """The least passes of all images, with nothing around them: same network, format and batches as the engine's.

    Args:
        native: of the engine, which says who survives and what images took that break.
        clean: (n,) who is right when clean.
    """
    assert native.survives is not None
    network = SurrogateCopy(subject.network).requires_grad_(False)
    size = AutoAttack().batch_size
    alive, broken = (
        flags.nonzero().flatten().to(subject.x.device) for flags in (native.survives, clean & ~native.survives)
    )
    work = [(points, alive, looks, gradients) for points, looks, gradients in _least_parts(subject.threat.norm)]
    forwards, gradients = (round(passes) for passes in native.passes["broken"])
    work.append((1, broken, forwards - gradients, gradients))

    def run() -> None:
        for part in chunks(len(subject.x), size):
            _look(network, subject.x[part])
        for points, chosen, looks, gradients in work:
            numbers = chosen.repeat(points)
            for part in chunks(len(numbers), size):
                x, y = subject.x[numbers[part]], subject.y[numbers[part]]
                for _ in range(looks):
                    _look(network, x)
                for _ in range(gradients):
                    x = x.detach().requires_grad_()
                    torch.autograd.grad(F.cross_entropy(network(x), y, reduction="sum"), x)

    return run


def _look(network: SurrogateCopy, x: Tensor) -> None:
    with torch.no_grad():
        network(x)


def _least_of(subject: BenchSubject, native: Row) -> dict[str, tuple[float, float]]:
    forwards, gradients = least_of_autoattack(subject.threat.norm)
    return {"survivor": (forwards, gradients), "broken": native.passes["broken"]}


def _time_package(subject: BenchSubject, watch: Stopwatch, row: Row, right: int) -> None:
    begun = watch.now()
    row.survives, passes = _package(subject)
    row.seconds.append(watch.now() - begun)
    row.passes = {"right when clean": _shared(passes.forwards, passes.gradients, right)}


def _time_native(subject: BenchSubject, watch: Stopwatch, row: Row, evaluator: AutoAttack) -> None:
    begun = watch.now()
    found = subject.gather(evaluator)
    row.seconds.append(watch.now() - begun)
    row.survives = found.survives
    if not row.passes:
        row.passes = _passes_of(subject, evaluator, found)


def _warmed_up(subject: BenchSubject, watch: Stopwatch, evaluators: Iterable[AutoAttack]) -> float | None:
    """Seconds until every program was there; None where nothing is compiled. Afterwards nothing is called first.

    Raises:
        RobustCliError: torch.compile does not work here, and what is measured would not be what it is called.
    """
    first = replace(subject, x=subject.x[:2], y=subject.y[:2])
    seconds = None
    for evaluator in evaluators:
        begun = watch.now()
        failures = first.gather(replace(evaluator, attacks=("apgd-ce",), screen=None)).warnings
        if evaluator.compile:
            seconds = (seconds or 0.0) + watch.now() - begun
        for failure in (text for text in failures if "torch.compile" in text):
            raise RobustCliError(failure)
    return seconds


def _plain(row: Row, rows: Mapping[str, Row]) -> dict[str, Any]:
    package, native = rows[PACKAGE], rows[NATIVE]
    assert package.survives is not None
    compared = speed(row.seconds, package.seconds)
    is_other = row.name not in (PACKAGE, ALONE)
    survives = package.survives if row.survives is None else row.survives
    return {
        "name": row.name,
        "seconds": asdict(Spread.of(row.seconds)),
        "speed": None if row is package else asdict(compared),
        "verdict": verdict(compared, speed(native.seconds, rows[NATIVE_AGAIN].seconds)) if is_other else None,
        "over_limit": asdict(speed(rows[ALONE].seconds, row.seconds)),
        "robust": None if row.survives is None else int(survives.sum()),
        "broken_alone": (package.survives & ~survives).nonzero().flatten().tolist(),
        "broken_by_the_package_alone": (survives & ~package.survives).nonzero().flatten().tolist(),
        "passes": row.passes,
    }


def _package(subject: BenchSubject) -> tuple[Tensor, Passes]:
    """As its users call it: on all images, with a network whose weights want gradients, in the plain format."""
    network = subject.network.requires_grad_(True)
    package = Package(version="standard", attacks=_PARTS, batch_size=250)
    with warnings.catch_warnings(), count_passes(network) as passes:
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
