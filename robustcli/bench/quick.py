"""`robust bench conformance --quick`: compare the estimates of quick evaluations with AutoAttack on all images."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from robustcli.bench.cost_tables import Rows
from robustcli.bench.results.quick import FullRow, QuickBench, QuickRow
from robustcli.bench.subjects import BenchSubject
from robustcli.errors import RobustCliError
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.restore import settled
from robustcli.evaluation.two_phase import TwoPhases
from robustcli.evaluators import Evaluator
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.quick import Quick
from robustcli.measuring.timing import Stopwatch

# Goals: mean absolute difference from AutoAttack in percentage points, and AutoAttack's time as a multiple, by the
# number of images from which on it holds; of fewer images the sample is a larger share.
GAP, RATIOS = 0.3, {10_000: 30, 1000: 15}

_HEADER = ("network", "threat", "images", "seed", "quick's estimate [95 %]", "no attack of quick broke", "AutoAttack",
           "gap, points", "seconds: quick / AutoAttack", "ratio", "sample contradicts cheap attacks")  # fmt: skip


def autoattack_on_all(subject: BenchSubject) -> FullRow:
    """Run our AutoAttack on all images."""
    found, seconds = _timed(subject, AutoAttack(), seed=0)
    return FullRow(robust=int(found.survives.sum()), seconds=seconds)


def bench_quick(subject: BenchSubject, full: FullRow, runs: int) -> QuickBench:
    """Compare the quick evaluation with AutoAttack on all images.

    Args:
        full: AutoAttack's result on the same images.
        runs: number of seeds of the quick evaluation, from 0.

    Raises:
        RobustCliError: the radius is 0.
    """
    rows = []
    for seed in range(runs):
        found, seconds = _timed(subject, Quick(), seed)
        phases = TwoPhases.of(found)
        if phases is None:
            raise RobustCliError(f"{subject.name}: no attack of the quick evaluation ran, because the radius is 0")
        estimate = phases.estimate
        rows.append(
            QuickRow(
                seed=seed,
                estimate=estimate.accuracy,
                interval=(estimate.low, estimate.high),
                robust=int(found.survives.sum()),
                is_misled=phases.disagreement is not None,
                seconds=seconds,
            )
        )
    return QuickBench(**subject.header(), clock=Stopwatch(subject.x.device).name, autoattack=full, rows=rows)


def _timed(subject: BenchSubject, evaluator: Evaluator, seed: int) -> tuple[Evidence, float]:
    """Return the results of an evaluator and its seconds."""
    watch = Stopwatch(subject.x.device)
    with settled(subject.network, subject.x.device.type):
        start = watch.now()
        found = subject.gather(evaluator, seed=seed)
        return found, watch.now() - start


def quick_rows(benches: Sequence[QuickBench]) -> Rows:
    """Return the table of `robust bench conformance --quick`, accuracies in percent."""
    return [
        _HEADER,
        *(
            (
                bench.subject,
                bench.threat,
                str(bench.images),
                str(row.seed),
                f"{100 * row.estimate:.2f} [{100 * row.interval[0]:.2f}, {100 * row.interval[1]:.2f}]",
                f"{100 * row.robust / bench.images:.2f}",
                f"{100 * bench.accuracy:.2f}",
                f"{bench.gap(row):+.2f}",
                f"{row.seconds:.1f} / {bench.autoattack.seconds:.1f}",
                f"{bench.ratio(row):.1f}",
                "yes" if row.is_misled else "no",
            )
            for bench in benches
            for row in bench.rows
        ),
    ]


def describe_quick(benches: Sequence[QuickBench]) -> str:
    """Return the mean gap and the ratio of time, by the numbers of images of the goals, and at fewer."""
    lines: list[str] = []
    left = list(benches)
    for images, ratio in RATIOS.items():
        lines += _described([bench for bench in left if bench.images >= images], f"from {images:,} images on", ratio)
        left = [bench for bench in left if bench.images < images]
    return "\n".join([*lines, *_described(left, "at fewer images", min(RATIOS.values()))])


def _described(benches: Sequence[QuickBench], where: str, goal: int) -> Iterator[str]:
    pairs = [(bench, row) for bench in benches for row in bench.rows]
    if not pairs:
        return
    gap = fmean(abs(bench.gap(row)) for bench, row in pairs)
    ratios = [bench.ratio(row) for bench, row in pairs]
    held = sum(bench.holds(row) for bench, row in pairs)
    yield (
        f"{where}: mean absolute gap {gap:.2f} points (goal {GAP}: {_verdict(gap <= GAP)}), AutoAttack takes "
        f"{min(ratios):.1f} to {max(ratios):.1f} times as long (goal {goal}: {_verdict(min(ratios) >= goal)}), "
        f"{held} of {len(pairs)} intervals contain AutoAttack's number"
    )


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"
