"""Results of the benches of evaluations -> Markdown and tables of the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from robustcli.bench.conformance import TOLERANCE, average_points, beyond, by_chance, holds, merged
from robustcli.errors import RobustCliError

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


def conformance_words(results: Sequence[Mapping[str, Any]]) -> str:
    """The verdict in one sentence."""
    means = ", ".join(f"{part} {points:+.2f}" for part, points in average_points(results).items())
    comparisons, odd = sum(len(result["rows"]) for result in results), beyond(results)
    named = f" ({'; '.join(odd)})" if odd else ""
    return (
        f"native minus package robust accuracy, mean points: {means}, where {TOLERANCE} is allowed; of {comparisons} "
        f"comparisons {len(odd)} lie beyond their 95 % interval{named}, and equal attacks would put up to "
        f"{by_chance(comparisons)} there; that verdicts are equal {'holds' if holds(results) else 'DOES NOT HOLD'}"
    )


def markdown_of(results: Mapping[str, Any]) -> tuple[str, str]:
    """Stored results of one bench of evaluations -> its name and a Markdown table.

    Args:
        results: by the file that they come from.

    Raises:
        RobustCliError: a file holds something else, or two files are of different benches.
    """
    kinds: dict[str, str] = {}
    for path, found in results.items():
        heads: list[Any] = found if isinstance(found, list) else []
        if not heads or not all(isinstance(head, Mapping) and head.get("rows") for head in heads):
            raise RobustCliError(f"{path}: not what `robust bench autoattack` or `conformance` wrote with --out")
        kinds[path] = "conformance" if "part" in heads[0]["rows"][0] else "speed"
    if len(set(kinds.values())) > 1:
        raise RobustCliError(f"{', '.join(f'{path} is of {kind}' for path, kind in kinds.items())}; name those of one")
    everything = [head for heads in results.values() for head in heads]
    if "speed" in kinds.values():
        return "speed", markdown(speed_rows(everything))
    results_of = merged(everything)
    return "conformance", f"{markdown(_summary(results_of))}\n{conformance_words(results_of)}.\n"


def _summary(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row per network and threat: robust accuracies, and how many images one engine alone breaks."""
    parts = tuple(dict.fromkeys(row["part"] for result in results for row in result["rows"]))
    rows: list[tuple[str, ...]] = [("network", "threat", "images", *parts)]
    for result in results:
        cells = dict.fromkeys(parts, "")
        for row in result["rows"]:
            total = row["runs"] * result["images"]
            alone = tuple(len(row[f"broken_by_{engine}_alone"]) for engine in ("native", "package"))
            runs = "" if row["runs"] == 1 else f"; {row['runs']} runs"
            cells[row["part"]] = (
                f"{100 * row['native'] / total:.1f} / {100 * row['package'] / total:.1f} ({alone[0]}, {alone[1]}{runs})"
            )
        name = result["subject"] + ("" if result["precision"] == "fp32" else f", {result['precision']}")
        rows.append((name, result["threat"], str(result["images"]), *cells.values()))
    return rows


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
