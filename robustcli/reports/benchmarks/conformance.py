"""Tables and sentences of `robust bench conformance`, with and without --quick."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from robustcli.bench.conformance import TOLERANCE, average_points, beyond, by_chance, holds
from robustcli.bench.results.conformance import ConformanceBench
from robustcli.bench.results.quick import QuickBench

# Goals of the quick evaluation: mean absolute difference from AutoAttack in percentage points, and AutoAttack's time as
# a multiple, by the number of images from which on it holds; of fewer images the sample is a larger share.
_GAP, _RATIOS = 0.3, {10_000: 30, 1000: 15}


def conformance_rows(benches: Sequence[ConformanceBench]) -> Iterator[dict[str, str]]:
    """Yield one row per network, threat and attack."""
    for bench in benches:
        for row in bench.rows:
            low, high = row.interval
            total = bench.images * row.runs
            yield {
                "network": bench.subject,
                "threat": bench.threat,
                "images": str(bench.images) if row.runs == 1 else f"{row.runs} x {bench.images}",
                "attack": row.part + ("" if bench.precision == "fp32" else f" ({bench.precision})"),
                "native %": f"{100 * row.native / total:.1f}",
                "package %": f"{100 * row.package / total:.1f}",
                "points [95 %]": f"{row.points:+.2f} [{low:+.2f}, {high:+.2f}]",
                "broken only by native": _images(row.broken_by_native_alone),
                "only by the package": _images(row.broken_by_package_alone),
            }


def network_rows(benches: Sequence[ConformanceBench]) -> Iterator[dict[str, str]]:
    """Yield one row per network and threat: robust accuracies, and images that only one engine breaks."""
    parts = dict.fromkeys((row.part for bench in benches for row in bench.rows), "")
    for bench in benches:
        cells = dict(parts)
        for row in bench.rows:
            native, package = (100 * count / (row.runs * bench.images) for count in (row.native, row.package))
            alone = f"{len(row.broken_by_native_alone)}, {len(row.broken_by_package_alone)}"
            runs = "" if row.runs == 1 else f"; {row.runs} runs"
            cells[row.part] = f"{native:.1f} / {package:.1f} ({alone}{runs})"
        name = bench.subject + ("" if bench.precision == "fp32" else f", {bench.precision}")
        yield {"network": name, "threat": bench.threat, "images": str(bench.images), **cells}


def describe_conformance(benches: Sequence[ConformanceBench]) -> str:
    """Return the verdict in one sentence."""
    means = ", ".join(f"{part} {points:+.2f}" for part, points in average_points(benches).items())
    comparisons, odd = sum(len(bench.rows) for bench in benches), beyond(benches)
    named = f" ({'; '.join(odd)})" if odd else ""
    return (
        f"native minus package robust accuracy, mean points: {means}, with a tolerance of {TOLERANCE}; of "
        f"{comparisons} comparisons {len(odd)} are outside their 95 % interval{named}, and for equal attacks up to "
        f"{by_chance(comparisons)} would be; equal results: {'confirmed' if holds(benches) else 'NOT CONFIRMED'}"
    )


def quick_rows(benches: Sequence[QuickBench]) -> Iterator[dict[str, str]]:
    """Yield the rows of `robust bench conformance --quick`, accuracies in percent."""
    for bench in benches:
        for row in bench.rows:
            low, high = row.interval
            yield {
                "network": bench.subject,
                "threat": bench.threat,
                "images": str(bench.images),
                "seed": str(row.seed),
                "quick's estimate [95 %]": f"{100 * row.estimate:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
                "no attack of quick broke": f"{100 * row.robust / bench.images:.2f}",
                "AutoAttack": f"{100 * bench.accuracy:.2f}",
                "gap, points": f"{bench.gap(row):+.2f}",
                "seconds: quick / AutoAttack": f"{row.seconds:.1f} / {bench.autoattack.seconds:.1f}",
                "ratio": f"{bench.ratio(row):.1f}",
                "sample contradicts cheap attacks": "yes" if row.is_misled else "no",
            }


def describe_quick(benches: Sequence[QuickBench]) -> str:
    """Return the mean gap and the ratio of time, by the numbers of images of the goals, and at fewer."""
    lines: list[str] = []
    left = list(benches)
    for images, ratio in _RATIOS.items():
        lines += _described([bench for bench in left if bench.images >= images], f"from {images:,} images on", ratio)
        left = [bench for bench in left if bench.images < images]
    return "\n".join([*lines, *_described(left, "at fewer images", min(_RATIOS.values()))])


def _described(benches: Sequence[QuickBench], where: str, goal: int) -> Iterator[str]:
    pairs = [(bench, row) for bench in benches for row in bench.rows]
    if not pairs:
        return
    gap = fmean(abs(bench.gap(row)) for bench, row in pairs)
    ratios = [bench.ratio(row) for bench, row in pairs]
    held = sum(bench.holds(row) for bench, row in pairs)
    yield (
        f"{where}: mean absolute gap {gap:.2f} points (goal {_GAP}: {_verdict(gap <= _GAP)}), AutoAttack takes "
        f"{min(ratios):.1f} to {max(ratios):.1f} times as long (goal {goal}: {_verdict(min(ratios) >= goal)}), "
        f"{held} of {len(pairs)} intervals contain AutoAttack's number"
    )


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _images(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{len(numbers)}: {shown}{', ...' if len(numbers) > 8 else ''}" if numbers else "0"
