"""Rows of tables and sentences for the results of benchmarks of training, evaluation, data and architectures."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.bench.results import (
    ArchitectureBench,
    DataBench,
    EvaluationBench,
    EvaluationPasses,
    Ratio,
    ScalingBench,
    TrainingBench,
    TrainingSettings,
    typed,
)
from robustcli.measuring.timing import AGAIN, ALONE

Rows = list[tuple[str, ...]]
Results = Sequence[Mapping[str, Any]]
# Images of CIFAR-10's training set.
_EPOCH = 50_000


def training_rows(results: Results) -> Rows:
    """Return the table of `robust bench train`: one row per update and implementation."""
    benches = typed(TrainingBench, results)
    is_gpu = any(bench.settings.clock == "wall" for bench in benches)
    epoch = ("s per 50,000 images",) if is_gpu else ()
    rows: Rows = [("network", "batch", "update", "by", "passes", "images/s", *epoch, "peak MB", "time over the limit's",
                   "our speed is: median (min-max)", "ours is")]  # fmt: skip
    for bench in benches:
        settings = bench.settings
        for name, found in bench.defenses.items():
            of = {row.name: row for row in found.rows}
            ours = found.rows[0]
            for row in found.rows:
                # These two appear in our row.
                if row.name in (AGAIN, ALONE):
                    continue
                # Our row shows the run-to-run variation and the verdict on the limit.
                compared = f"again {shown(of[AGAIN].ratio)}" if row is ours else shown(row.ratio)
                verdict = f"compared with the limit: {of[ALONE].verdict}" if row is ours else row.verdict or ""
                passes = row.passes if row.passes is not None else found.passes if row is ours else {}
                speed = row.images_per_second
                rows.append(
                    (
                        _network(settings),
                        str(settings.batch_size),
                        settings.method(name),
                        row.name,
                        format_passes(passes),
                        f"{speed:.1f}",
                        *([f"{_EPOCH / speed:.1f}"] if is_gpu else []),
                        row.peak,
                        shown(row.over_limit),
                        compared,
                        verdict,
                    )
                )
    return rows


def shown(ratio: Ratio | None) -> str:
    """Return median, minimum and maximum of a ratio, or "" for None."""
    return "" if ratio is None else str(ratio)


def format_passes(passes: Mapping[str, float]) -> str:
    """Return forward + input-gradient + weight-gradient passes as text."""
    return " + ".join(f"{count:g}" for count in passes.values())


def _network(settings: TrainingSettings) -> str:
    layout = ", channels_last" if settings.channels_last else ""
    compiled = ", compiled" if settings.compile else ""
    return f"{settings.network}, {settings.precision}{layout}{compiled}"


def evaluation_rows(results: Results) -> Rows:
    """Return the table of `robust bench eval`; passes are forward + gradient passes per image."""
    rows: Rows = [("network", "threat", "images", "evaluation", "ms per image", "peak MB", "time over the limit's",
                   "our speed is: median (min-max)", "ours is", "robust", "passes")]  # fmt: skip
    for bench in typed(EvaluationBench, results):
        rows += [
            (
                bench.subject,
                bench.threat,
                str(bench.images),
                f"{bench.attack}: {row.name}",
                f"{1000 * row.seconds.median / bench.images:.2f}",
                row.peak,
                shown(row.over_limit),
                shown(row.ratio),
                row.verdict or "",
                "" if row.robust is None else str(row.robust),
                _gradients(row.passes),
            )
            for row in bench.rows
        ]
    return rows


def _gradients(passes: EvaluationPasses) -> str:
    too = f" ({passes.weight_gradients:.1f} to the weights too)" if passes.weight_gradients else ""
    return f"{passes.forwards:.1f} + {passes.gradients:.1f}{too}"


def data_rows(results: Results) -> Rows:
    """Return the table of `robust bench data`."""
    rows: Rows = [("batch", "pipeline", "us per image", "share of a step: median (min-max)", "of the step",
                   "our speed is: median (min-max)", "ours is")]  # fmt: skip
    for bench in typed(DataBench, results):
        for row in bench.rows:
            share = row.share_of_step
            rows.append(
                (
                    str(bench.batch_size),
                    row.name,
                    f"{1e6 * row.seconds_per_image.median:.1f}",
                    f"{100 * share.median:.2f} % ({100 * share.low:.2f}-{100 * share.high:.2f})",
                    bench.step.name,
                    shown(row.ratio),
                    row.verdict or "",
                )
            )
    return rows


def architecture_rows(results: Results) -> Rows:
    """Return the table of `robust bench architectures`, the slowest first."""
    rows: Rows = [("architecture", "10^6 mult.-acc.", "forward ms", "with gradient ms", "G mult.-acc./s",
                   "relative to resnet18, forward", "with gradient", "")]  # fmt: skip
    for bench in typed(ArchitectureBench, results):
        for row in sorted(bench.rows, key=lambda row: row.ratio.gradient.median):
            seconds = row.seconds_per_image
            rows.append(
                (
                    row.label,
                    f"{row.macs / 1e6:,.1f}",
                    f"{1000 * seconds.forward.median:.2f}",
                    f"{1000 * seconds.gradient.median:.2f}",
                    f"{row.gmacs_per_second.gradient:.1f}",
                    str(row.ratio.forward),
                    str(row.ratio.gradient),
                    "slow" if row.is_slow else "",
                )
            )
    return rows


def describe_architectures(results: Results) -> str:
    """Return a sentence about slow architectures."""
    benches = typed(ArchitectureBench, results)
    slow = [row.label for bench in benches for row in bench.rows if row.is_slow]
    share = f"a third of the multiply-accumulates per second of {benches[0].yardstick}, in every round"
    return f"less than {share}: {', '.join(slow)}" if slow else f"no architecture has less than {share}"


def scaling_rows(results: Results) -> Rows:
    """Return the table of `robust bench scaling`."""
    rows: Rows = [("network", "over", "at", "ms per update: median (min-max)", "deviation from the line", "")]
    for bench in typed(ScalingBench, results):
        for name, axis in bench.axes.items():
            for point in axis.points:
                median, low, high = (1000 * value for value in vars(point.seconds).values())
                rows.append(
                    (
                        bench.architecture,
                        name,
                        str(point.value),
                        f"{median:.1f} ({low:.1f}-{high:.1f})",
                        f"{100 * point.apart:+.0f} %",
                        "off the line" if point.is_off else "",
                    )
                )
    return rows


def describe_scaling(results: Results) -> str:
    """Return a sentence for each axis: the line, and points that deviate from it."""
    sentences = []
    units = {"batch": "image", "steps": "step", "width": "10^6 multiply-accumulates"}
    for bench in typed(ScalingBench, results):
        for name, axis in bench.axes.items():
            off = [str(point.value) for point in axis.points if point.is_off]
            where = f"deviations at {', '.join(off)}" if off else "no deviations"
            line = (
                f"{1000 * axis.start:.1f} ms + {1000 * axis.slope:.2f} ms per {units[name]}"
                if name in units
                else f"{1000 * axis.start:.1f} ms with one process"
            )
            sentences.append(f"{name}: {line}, {where}")
    return "\n".join(sentences)
