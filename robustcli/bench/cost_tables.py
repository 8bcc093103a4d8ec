"""Rows of tables and sentences for the results of benchmarks of evaluation, data, architectures and scaling."""

from collections.abc import Sequence

from robustcli.bench.decoding import LOADER
from robustcli.bench.results.architectures import ArchitectureBench
from robustcli.bench.results.data import DataBench
from robustcli.bench.results.evaluation import EvaluationBench, EvaluationPasses
from robustcli.bench.results.scaling import ScalingBench
from robustcli.measuring.timing import OURS, Spread

Rows = list[tuple[str, ...]]


def shown(ratio: Spread | None) -> str:
    """Return median, minimum and maximum of a ratio, or "" for None."""
    return "" if ratio is None else str(ratio)


def evaluation_rows(benches: Sequence[EvaluationBench]) -> Rows:
    """Return the table of `robust bench eval`; passes are forward + gradient passes per image."""
    rows: Rows = [("network", "threat", "images", "evaluation", "ms per image", "peak MB", "time / limit",
                   "our speed / this row's: median (min-max)", "ours is", "robust", "passes")]  # fmt: skip
    for bench in benches:
        rows += [
            (
                bench.subject,
                bench.threat,
                str(bench.images),
                f"{bench.attack}: {row.name}",
                f"{1000 * row.seconds.median / bench.images:.2f}",
                row.peak,
                str(row.over_limit),
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


def data_rows(benches: Sequence[DataBench]) -> Rows:
    """Return the table of `robust bench data`."""
    rows: Rows = [("batch", "pipeline", "us per image", "share of a step: median (min-max)", "of the step",
                   "our speed / this row's: median (min-max)", "ours is")]  # fmt: skip
    for bench in benches:
        for row in bench.rows:
            share = row.share_of_step * 100
            rows.append(
                (
                    str(bench.batch_size),
                    row.name,
                    f"{1e6 * row.seconds_per_image.median:.1f}",
                    f"{share.median:.2f} % ({share.range('.2f')})",
                    bench.step.name,
                    shown(row.ratio),
                    row.verdict or "",
                )
            )
    return rows


def describe_decoding(benches: Sequence[DataBench]) -> str:
    """Return sentences about decoding; files of version 0.1 have none."""
    lines = []
    for found in (bench.decoding for bench in benches if bench.decoding is not None):
        width, height = found.file
        lines.append(f"Random resized crops of {found.size} px from {width} x {height} JPEG:")
        for row in found.rows:
            rate, cost = row.images_per_second, row.processor_ms_per_image
            processors = f"{row.processors} processor" + "s" * (row.processors > 1)
            lines.append(
                f"  {row.name}, {processors}: {rate.median:.0f} images/s ({rate.range('.0f')}), "
                f"{cost.median:.2f} ms of processor time each ({cost.range('.2f')})"
            )
        lines += [
            f"  per processor, on {count}: {ratio} times the images of {LOADER} in the same processor time"
            for count, ratio in found.per_processor.items()
        ]
        lock = found.lock_ms_per_image
        lines += [
            f"  {OURS}, all processors: {found.scaling} times what loaders on one each give at once, "
            f"{found.scaling_quietest:.2f} in the quietest rounds",
            f"  images per processor second on all: {found.processor_scaling} times those on one; "
            f"{lock.median:.2f} ms ({lock.range('.2f')}) of an image are spent under the "
            f"interpreter lock, so one process decodes at most {1000 / lock.median:,.0f} images/s",
        ]
    return "\n".join(lines)


def architecture_rows(benches: Sequence[ArchitectureBench]) -> Rows:
    """Return the table of `robust bench architectures`, the slowest first."""
    rows: Rows = [("architecture", "10^6 mult.-acc.", "forward ms", "with gradient ms", "G mult.-acc./s",
                   "relative to resnet18, forward", "with gradient", "")]  # fmt: skip
    for bench in benches:
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


def describe_architectures(benches: Sequence[ArchitectureBench]) -> str:
    """Return a sentence about slow architectures."""
    slow = [row.label for bench in benches for row in bench.rows if row.is_slow]
    share = f"a third of the multiply-accumulates per second of {benches[0].yardstick}, in every round"
    return f"less than {share}: {', '.join(slow)}" if slow else f"no architecture has less than {share}"


def scaling_rows(benches: Sequence[ScalingBench]) -> Rows:
    """Return the table of `robust bench scaling`."""
    rows: Rows = [("network", "over", "at", "ms per update: median (min-max)", "deviation from the line", "")]
    for bench in benches:
        for name, axis in bench.axes.items():
            for point in axis.points:
                rows.append(
                    (
                        bench.architecture,
                        name,
                        str(point.value),
                        f"{point.seconds * 1000:.1f}",
                        f"{100 * point.apart:+.0f} %",
                        "off the line" if point.is_off else "",
                    )
                )
    return rows


def describe_scaling(benches: Sequence[ScalingBench]) -> str:
    """Return a sentence for each axis: the line, and points that deviate from it."""
    sentences = []
    units = {"batch": "image", "steps": "step", "width": "10^6 multiply-accumulates"}
    for bench in benches:
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
