"""Results of the benches of evaluations -> Markdown and tables of the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from robustcli.bench.conformance import TOLERANCE, average_points, holds

_SPEED = ("network", "threat", "images", "engine", "speed: median (min-max)", "robust", "passes per survivor",
          "passes per broken image")  # fmt: skip
_CONFORMANCE = ("network", "threat", "images", "attack", "native %", "package %", "points [95 %]",
                "broken by native alone", "by the package alone")  # fmt: skip


def speed_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Header and rows; passes are forwards + gradients."""
    rows: list[tuple[str, ...]] = [_SPEED]
    for result in results:
        for row in result["rows"]:
            ratio = row["speed"]
            passes = row["passes"]
            survivor = passes.get("survivor", passes.get("right when clean"))
            rows.append(
                (
                    result["subject"],
                    result["threat"],
                    str(result["images"]),
                    row["name"],
                    f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "1",
                    str(row["robust"]),
                    _pair(survivor) + ("" if "survivor" in passes else " (mean of all right when clean)"),
                    _pair(passes["broken"]) if "broken" in passes else "",
                )
            )
        forwards, gradients = result["least_passes_per_survivor"]
        rows.append((result["subject"], result["threat"], "", "the least", "", "", f"{forwards:,} + {gradients:,}", ""))
    return rows


def conformance_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Header and rows."""
    rows: list[tuple[str, ...]] = [_CONFORMANCE]
    for result in results:
        images = result["images"]
        for row in result["rows"]:
            low, high = row["interval"]
            total = images * row["runs"]
            rows.append(
                (
                    result["subject"],
                    result["threat"],
                    str(images) if row["runs"] == 1 else f"{row['runs']} x {images}",
                    row["part"] + ("" if result["precision"] == "fp32" else f" ({result['precision']})"),
                    f"{100 * row['native'] / total:.1f}",
                    f"{100 * row['package'] / total:.1f}",
                    f"{row['points']:+.2f} [{low:+.2f}, {high:+.2f}]",
                    _images(row["broken_by_native_alone"]),
                    _images(row["broken_by_package_alone"]),
                )
            )
    return rows


def conformance_words(results: list[dict[str, Any]]) -> str:
    """The verdict in one sentence."""
    means = ", ".join(f"{part} {points:+.2f}" for part, points in average_points(results).items())
    outcome = "holds" if holds(results) else "DOES NOT HOLD"
    return (
        f"native minus package robust accuracy, mean points: {means}; that none exceeds {TOLERANCE} and no network's "
        f"lies beyond its interval {outcome}"
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header and rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def terminal(rows: Sequence[Sequence[str]]) -> Table:
    """The same for a terminal."""
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _pair(passes: Sequence[float]) -> str:
    return f"{passes[0]:,.0f} + {passes[1]:,.0f}"


def _images(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{len(numbers)}: {shown}{', ...' if len(numbers) > 8 else ''}" if numbers else "0"
