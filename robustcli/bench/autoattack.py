"""`robust bench autoattack`: speed of our AutoAttack and of the authors' package, in one process.

The limit is the minimum for the same result: the passes of images that survive and of images that break, by themselves.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustcli.attacks.surrogate import SurrogateCopy
from robustcli.bench.results.autoattack import MeanPasses, OutcomePasses, SpeedBench, SpeedRow
from robustcli.bench.subjects import BenchSubject
from robustcli.errors import RobustCliError
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.passes import Passes, count_passes
from robustcli.evaluation.restore import restored_generators, restored_model
from robustcli.evaluators import chunks
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.autoattack_package import Package
from robustcli.measuring.passes import forward_alone, input_gradient_alone
from robustcli.measuring.timing import ALONE, Spread, Stopwatch, alternating, speed, verdict
from robustcli.runtime.precision import full_precision

PACKAGE, NATIVE, NATIVE_AGAIN = "package, as it comes", "native", "native again"
_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
_MOVES, _QUERIES, _FAB_TARGETS = 100, 5000, 9


def bench_autoattack(
    subject: BenchSubject, rounds: int, screen: int | None, *, is_compiled: bool = False
) -> SpeedBench:
    """Time standard AutoAttack with the package, the native engine and its fast precision, in turn in every round.

    Args:
        screen: also measure with this number of sampled survivors.
        is_compiled: also measure compiled searches; the time of compilation is reported separately.
    """
    evaluators = _evaluators(screen, is_compiled)
    watch = Stopwatch(subject.x.device)
    with restored_model(subject.network), restored_generators(subject.x.device):
        with full_precision(subject.x.device.type):
            clean = subject.gather(AutoAttack(), subject.threat.scaled(0)).survives
            compile_seconds = _warmed_up(subject, watch, evaluators.values())
        package = _PackageRun(subject, watch, int(clean.sum()))
        natives = {name: _NativeRun(subject, watch, evaluator) for name, evaluator in evaluators.items()}
        limit = _LimitRun(subject, watch, natives[NATIVE], clean)
        runs: dict[str, _Run] = {PACKAGE: package, **natives, ALONE: limit}
        # The limit is last in the first round, because it makes passes that depend on what the others find.
        for order in alternating(runs.values(), rounds):
            for run in order:
                run.once()
    return SpeedBench(
        **subject.header(["pyautoattack"]),
        clean=float(clean.double().mean()),
        clock=watch.name,
        rounds=rounds,
        compile_seconds=compile_seconds,
        least_passes_per_survivor=[*least_of_autoattack(subject.threat.norm)],
        rows=[_row(name, run, runs) for name, run in runs.items()],
    )


def _evaluators(screen: int | None, is_compiled: bool) -> dict[str, AutoAttack]:
    """Return the settings of the native engine to measure."""
    evaluators = {NATIVE: AutoAttack(), NATIVE_AGAIN: AutoAttack(), f"{NATIVE}, fast": AutoAttack(precision="fast")}
    if is_compiled:
        evaluators[f"{NATIVE}, compiled"] = AutoAttack(compile=True)
        evaluators[f"{NATIVE}, fast, compiled"] = AutoAttack(precision="fast", compile=True)
    if screen is not None:
        name = f"{NATIVE}, fast{', compiled' if is_compiled else ''}, sample first {screen}"
        evaluators[name] = AutoAttack(precision="fast", compile=is_compiled, sample_first=screen)
    return evaluators


@dataclass
class _Run:
    """One engine, which runs once per round.

    Args:
        seconds: seconds of every round.
        survives: mask (n,) of the surviving images; None for the limit.
        passes: passes per image.
    """

    subject: BenchSubject
    watch: Stopwatch
    seconds: list[float] = field(default_factory=list, init=False)
    survives: Tensor | None = field(default=None, init=False)
    passes: OutcomePasses | MeanPasses | None = field(default=None, init=False)

    def once(self) -> None:
        """Run once and add the seconds."""
        raise NotImplementedError

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = self.watch.now()
        yield
        self.seconds.append(self.watch.now() - start)


@dataclass
class _PackageRun(_Run):
    """The package, in the default precision of torch; everything else runs in single precision.

    Args:
        right: number of images that are classified correctly without an attack.
    """

    right: int

    def once(self) -> None:
        with self.timed():
            self.survives, made = _package(self.subject)
        self.passes = MeanPasses(mean=_per_image(made.forwards, made.gradients, self.right))


@dataclass
class _NativeRun(_Run):
    """The native engine."""

    evaluator: AutoAttack

    def once(self) -> None:
        with full_precision(self.subject.x.device.type):
            with self.timed():
                found = self.subject.gather(self.evaluator)
            self.survives = found.survives
            self.passes = self.passes or _passes_of(self.subject, self.evaluator, found)


@dataclass
class _LimitRun(_Run):
    """The minimum of passes, by themselves, for the images that survive and break in the native engine.

    Args:
        clean: mask (n,) of the images that are classified correctly without an attack.
    """

    native: _Run
    clean: Tensor
    bare: Callable[[], None] | None = field(default=None, init=False)

    def once(self) -> None:
        with full_precision(self.subject.x.device.type):
            if self.bare is None:
                self.bare = self._prepared()
            with self.timed():
                self.bare()

    def _prepared(self) -> Callable[[], None]:
        assert self.native.survives is not None
        assert isinstance(self.native.passes, OutcomePasses)
        broken = self.native.passes.broken
        self.passes = OutcomePasses(survivor=least_of_autoattack(self.subject.threat.norm), broken=broken)
        return passes_alone(self.subject, self.clean, self.native.survives, broken)


def _row(name: str, run: _Run, runs: Mapping[str, _Run]) -> SpeedRow:
    package, native = runs[PACKAGE], runs[NATIVE]
    assert package.survives is not None
    assert run.passes is not None
    compared = speed(run.seconds, package.seconds)
    is_native = name not in (PACKAGE, ALONE)
    survives = package.survives if run.survives is None else run.survives
    return SpeedRow(
        name=name,
        seconds=Spread.of(run.seconds),
        speed=None if run is package else compared,
        verdict=verdict(compared, speed(native.seconds, runs[NATIVE_AGAIN].seconds)) if is_native else None,
        over_limit=speed(runs[ALONE].seconds, run.seconds),
        robust=None if run.survives is None else int(survives.sum()),
        broken_alone=(package.survives & ~survives).nonzero().flatten().tolist(),
        broken_by_the_package_alone=(survives & ~package.survives).nonzero().flatten().tolist(),
        passes=run.passes,
    )


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


def passes_alone(
    subject: BenchSubject, clean: Tensor, survives: Tensor, passes_of_broken: tuple[float, float]
) -> Callable[[], None]:
    """Return a function that runs the minimum of passes with the network, format and batches of the engine.

    Args:
        clean: mask (n,) of the images that are classified correctly without an attack.
        survives: mask (n,) of those that survive.
        passes_of_broken: forward and gradient passes per image that breaks.
    """
    network = SurrogateCopy(subject.network).requires_grad_(False)
    size = AutoAttack().batch_size
    alive, broken = (flags.nonzero().flatten().to(subject.x.device) for flags in (survives, clean & ~survives))
    work = [(points, alive, forwards, gradients) for points, forwards, gradients in _least_parts(subject.threat.norm)]
    forwards, gradients = (round(passes) for passes in passes_of_broken)
    work.append((1, broken, forwards - gradients, gradients))

    def run() -> None:
        for part in chunks(len(subject.x), size):
            forward_alone(network, subject.x[part])
        for points, chosen, forwards, gradients in work:
            numbers = chosen.repeat(points)
            for part in chunks(len(numbers), size):
                x, y = subject.x[numbers[part]], subject.y[numbers[part]]
                for _ in range(forwards):
                    forward_alone(network, x)
                for _ in range(gradients):
                    input_gradient_alone(network, x, y)

    return run


def _warmed_up(subject: BenchSubject, watch: Stopwatch, evaluators: Iterable[AutoAttack]) -> float | None:
    """Warm up every engine, and return the seconds of compilation, or None without compilation.

    Raises:
        RobustCliError: torch.compile failed, so that the measurement would be mislabeled.
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


def _passes_of(subject: BenchSubject, evaluator: AutoAttack, whole: Evidence) -> OutcomePasses:
    """Attack the broken images once more by themselves; the remaining passes were spent on survivors."""
    broken = (whole.broken_by >= 0).nonzero().flatten().to(subject.x.device)
    alive = int(whole.survives.sum())
    spent = (0, 0)
    if len(broken):
        rng = subject.noise().rows(broken)
        found = gather(evaluator, subject.network, subject.x[broken], subject.y[broken], subject.threat, rng)
        spent = (found.forwards, found.gradients)
    wrong = len(subject.x) - alive - len(broken)
    return OutcomePasses(
        survivor=_per_image(whole.forwards - wrong - spent[0], whole.gradients - spent[1], alive),
        broken=_per_image(*spent, len(broken)),
    )


def _per_image(forwards: int, gradients: int, images: int) -> tuple[float, float]:
    return forwards / max(images, 1), gradients / max(images, 1)
