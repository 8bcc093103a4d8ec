"""`robust bench conformance --quick`: compare the estimates of quick evaluations with AutoAttack on all images."""

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
