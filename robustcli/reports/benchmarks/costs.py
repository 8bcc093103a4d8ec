"""Tables and sentences of `robust bench data`, `architectures` and `scaling`."""

from collections.abc import Iterator, Sequence

from robustcli.bench.decoding import LOADER
from robustcli.bench.results.architectures import ArchitectureBench
from robustcli.bench.results.data import DataBench
from robustcli.bench.results.scaling import ScalingBench
from robustcli.measuring.timing import OURS


def data_rows(benches: Sequence[DataBench]) -> Iterator[dict[str, str]]:
    """Yield the rows of `robust bench data`."""
    for bench in benches:
        for row in bench.rows:
            share = row.share_of_step * 100
            yield {
                "batch": str(bench.batch_size),
                "pipeline": row.name,
                "us per image": f"{1e6 * row.seconds_per_image.median:.1f}",
                "share of a step: median (min-max)": f"{share.median:.2f} % ({share.range('.2f')})",
                "of the step": bench.step.name,
                "our speed / this row's: median (min-max)": row.ratio_text,
                "ours is": row.verdict or "",
            }


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


def architecture_rows(benches: Sequence[ArchitectureBench]) -> Iterator[dict[str, str]]:
    """Yield the rows of `robust bench architectures`, the slowest first."""
    for bench in benches:
        for row in sorted(bench.rows, key=lambda row: row.ratio.gradient.median):
            seconds = row.seconds_per_image
            yield {
                "architecture": row.label,
                "10^6 mult.-acc.": f"{row.macs / 1e6:,.1f}",
                "forward ms": f"{1000 * seconds.forward.median:.2f}",
                "with gradient ms": f"{1000 * seconds.gradient.median:.2f}",
                "G mult.-acc./s": f"{row.gmacs_per_second.gradient:.1f}",
                "relative to resnet18, forward": str(row.ratio.forward),
                "with gradient": str(row.ratio.gradient),
                "": "slow" if row.is_slow else "",
            }


def describe_architectures(benches: Sequence[ArchitectureBench]) -> str:
    """Return a sentence about slow architectures."""
    slow = [row.label for bench in benches for row in bench.rows if row.is_slow]
    share = f"a third of the multiply-accumulates per second of {benches[0].yardstick}, in every round"
    return f"less than {share}: {', '.join(slow)}" if slow else f"no architecture has less than {share}"


def scaling_rows(benches: Sequence[ScalingBench]) -> Iterator[dict[str, str]]:
    """Yield the rows of `robust bench scaling`."""
    for bench in benches:
        for name, axis in bench.axes.items():
            for point in axis.points:
                yield {
                    "network": bench.architecture,
                    "over": name,
                    "at": str(point.value),
                    "ms per update: median (min-max)": f"{point.seconds * 1000:.1f}",
                    "deviation from the line": f"{100 * point.apart:+.0f} %",
                    "": "off the line" if point.is_off else "",
                }


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
