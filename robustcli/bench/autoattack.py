"""`robust bench autoattack`: speed of our AutoAttack and of the authors' package, in one process.

The limit is the minimum for the same result: the passes of images that survive and of images that break, by themselves.
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
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
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
    """Result of one engine.

    Args:
        name: name of the engine.
        seconds: seconds of every round.
        survives: mask (n,) of the surviving images; None for the limit.
        passes: forward and gradient passes per image that survives and per image that breaks. The package does not
            distinguish them, so for it: per image that is classified correctly without an attack.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    survives: Tensor | None = None
    passes: dict[str, tuple[float, float]] = field(default_factory=dict)


def bench_autoattack(
    subject: BenchSubject, rounds: int, screen: int | None, *, is_compiled: bool = False
) -> dict[str, Any]:
    """Time standard AutoAttack with the package, the native engine and its fast precision, in turn in every round.

    Args:
        screen: also measure with this number of sampled survivors.
        is_compiled: also measure compiled searches; the time of compilation is reported separately.
    """
    evaluators = {NATIVE: AutoAttack(), NATIVE_AGAIN: AutoAttack(), f"{NATIVE}, fast": AutoAttack(precision="fast")}
    if is_compiled:
        evaluators[f"{NATIVE}, compiled"] = AutoAttack(compile=True)
        evaluators[f"{NATIVE}, fast, compiled"] = AutoAttack(precision="fast", compile=True)
    if screen is not None:
        name = f"{NATIVE}, fast{', compiled' if is_compiled else ''}, sample first {screen}"
        evaluators[name] = AutoAttack(precision="fast", compile=is_compiled, sample_first=screen)
    watch = Stopwatch(subject.x.device)
    # The package runs in the default precision of torch, everything else in single precision.
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
                    # Last in the first round, when the survivors and the passes of the others are known.
                    if alone is None:
                        row.passes = _least_of(subject, rows[NATIVE])
                        alone = passes_alone(subject, rows[NATIVE], clean)
                    start = watch.now()
                    alone()
                    row.seconds.append(watch.now() - start)
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
    """Return the minimum of forward and gradient passes of standard AutoAttack on an image that survives.

    APGD with n steps takes n gradients and one more forward pass. FAB takes as many forward passes as gradients if it
    never finds a misclassified point. Square takes its start and its queries, fewer
    if some change nothing. The clean image takes one forward pass.
    """
    parts = _least_parts(norm)
    forwards = 1 + sum(side_by_side * (forwards + gradients) for side_by_side, forwards, gradients in parts)
    return forwards, sum(side_by_side * gradients for side_by_side, _, gradients in parts)


def _least_parts(norm: str) -> list[tuple[int, int, int]]:
    """Return for each attack the points that pass together, forward passes without gradient, and gradients."""
    tries, targets = (5, 5) if norm == "l1" else (1, 9)
    return [
        (1, tries, tries * _MOVES),
        (targets, 1, _MOVES),
        (_FAB_TARGETS, 0, _MOVES),
        (1, _QUERIES + 1, 0),
    ]


def passes_alone(subject: BenchSubject, native: Row, clean: Tensor) -> Callable[[], None]:
    """Return a function that runs the minimum of passes with the network, format and batches of the engine.

    Args:
        native: result of the native engine, with survivors and the passes of images that break.
        clean: mask (n,) of the images that are classified correctly without an attack.
    """
    assert native.survives is not None
    network = SurrogateCopy(subject.network).requires_grad_(False)
    size = AutoAttack().batch_size
    alive, broken = (
        flags.nonzero().flatten().to(subject.x.device) for flags in (native.survives, clean & ~native.survives)
    )
    work = [(points, alive, forwards, gradients) for points, forwards, gradients in _least_parts(subject.threat.norm)]
    forwards, gradients = (round(passes) for passes in native.passes["broken"])
    work.append((1, broken, forwards - gradients, gradients))

    def run() -> None:
        for part in chunks(len(subject.x), size):
            _forward(network, subject.x[part])
        for points, chosen, forwards, gradients in work:
            numbers = chosen.repeat(points)
            for part in chunks(len(numbers), size):
                x, y = subject.x[numbers[part]], subject.y[numbers[part]]
                for _ in range(forwards):
                    _forward(network, x)
                for _ in range(gradients):
                    x = x.detach().requires_grad_()
                    torch.autograd.grad(F.cross_entropy(network(x), y, reduction="sum"), x)

    return run


def _forward(network: SurrogateCopy, x: Tensor) -> None:
    with torch.no_grad():
        network(x)


def _least_of(subject: BenchSubject, native: Row) -> dict[str, tuple[float, float]]:
    forwards, gradients = least_of_autoattack(subject.threat.norm)
    return {"survivor": (forwards, gradients), "broken": native.passes["broken"]}


def _time_package(subject: BenchSubject, watch: Stopwatch, row: Row, right: int) -> None:
    start = watch.now()
    row.survives, passes = _package(subject)
    row.seconds.append(watch.now() - start)
    row.passes = {"right when clean": _per_image(passes.forwards, passes.gradients, right)}


def _time_native(subject: BenchSubject, watch: Stopwatch, row: Row, evaluator: AutoAttack) -> None:
    start = watch.now()
    found = subject.gather(evaluator)
    row.seconds.append(watch.now() - start)
    row.survives = found.survives
    if not row.passes:
        row.passes = _passes_of(subject, evaluator, found)


def _warmed_up(subject: BenchSubject, watch: Stopwatch, evaluators: Iterable[AutoAttack]) -> float | None:
    """Warm up every engine, and return the seconds of compilation, or None without compilation.

    Raises:
        RobustCliError: torch.compile failed, so that the measurement would be mislabelled.
    """
    first = replace(subject, x=subject.x[:2], y=subject.y[:2])
    seconds = None
    for evaluator in evaluators:
        start = watch.now()
        failures = first.gather(replace(evaluator, attacks=("apgd-ce",), sample_first=None)).warnings
        if evaluator.compile:
            seconds = (seconds or 0.0) + watch.now() - start
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
    """Run the package as its users do: on all images, with weights that need gradients, in the default format."""
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
    """Attack the broken images once more by themselves; the remaining passes were spent on survivors."""
    broken = (whole.broken_by >= 0).nonzero().flatten().to(subject.x.device)
    alive = int(whole.survives.sum())
    spent = (0, 0)
    if len(broken):
        rng = subject.noise().rows(broken)
        alone = gather(evaluator, subject.network, subject.x[broken], subject.y[broken], subject.threat, rng)
        spent = (alone.forwards, alone.gradients)
    wrong = len(subject.x) - alive - len(broken)
    return {
        "survivor": _per_image(whole.forwards - wrong - spent[0], whole.gradients - spent[1], alive),
        "broken": _per_image(*spent, len(broken)),
    }


def _per_image(forwards: int, gradients: int, images: int) -> tuple[float, float]:
    return forwards / max(images, 1), gradients / max(images, 1)
