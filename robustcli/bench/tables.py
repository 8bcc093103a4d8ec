"""Markdown and terminal tables of the results of benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from robustcli.bench.conformance import TOLERANCE, average_points, beyond, by_chance, holds, merged
from robustcli.bench.cost_tables import (
    Rows,
    architecture_rows,
    data_rows,
    describe_architectures,
    describe_decoding,
    describe_scaling,
    evaluation_rows,
    scaling_rows,
)
from robustcli.bench.quick import describe_quick, quick_rows
from robustcli.bench.results.architectures import ArchitectureBench
from robustcli.bench.results.autoattack import MeanPasses, SpeedBench, SpeedRow
from robustcli.bench.results.common import Bench
from robustcli.bench.results.conformance import ConformanceBench
from robustcli.bench.results.data import DataBench
from robustcli.bench.results.evaluation import EvaluationBench
from robustcli.bench.results.quick import QuickBench
from robustcli.bench.results.scaling import ScalingBench
from robustcli.bench.results.training import TrainingBench
from robustcli.bench.training_tables import training_rows
from robustcli.errors import RobustCliError

_SPEED = ("network", "threat", "images", "engine", "seconds", "time / limit", "speed: median (min-max)",
          "result", "robust", "passes per survivor", "passes per broken image")  # fmt: skip
_CONFORMANCE = ("network", "threat", "images", "attack", "native %", "package %", "points [95 %]",
                "broken only by native", "only by the package")  # fmt: skip


def speed_rows(benches: Sequence[SpeedBench]) -> Rows:
    """Return the table of `robust bench autoattack`; passes are forward + gradient passes."""
    return [
        _SPEED,
        *(
            (
                bench.subject,
                bench.threat,
                str(bench.images),
                row.name,
                f"{row.seconds.median:.2f}",
                str(row.over_limit),
                "1" if row.speed is None else str(row.speed),
                row.verdict or "",
                "" if row.robust is None else str(row.robust),
                *_passes(row),
            )
            for bench in benches
            for row in bench.rows
        ),
    ]


def _passes(row: SpeedRow) -> tuple[str, str]:
    """Return the passes per survivor and per broken image."""
    if isinstance(row.passes, MeanPasses):
        return f"{_pair(row.passes.mean)} (mean of all right when clean)", ""
    return _pair(row.passes.survivor), _pair(row.passes.broken)


def conformance_rows(benches: Sequence[ConformanceBench]) -> Rows:
    """Return the table of `robust bench conformance`."""
    rows: Rows = [_CONFORMANCE]
    for bench in benches:
        for row in bench.rows:
            low, high = row.interval
            total = bench.images * row.runs
            rows.append(
                (
                    bench.subject,
                    bench.threat,
                    str(bench.images) if row.runs == 1 else f"{row.runs} x {bench.images}",
                    row.part + ("" if bench.precision == "fp32" else f" ({bench.precision})"),
                    f"{100 * row.native / total:.1f}",
                    f"{100 * row.package / total:.1f}",
                    f"{row.points:+.2f} [{low:+.2f}, {high:+.2f}]",
                    _images(row.broken_by_native_alone),
                    _images(row.broken_by_package_alone),
                )
            )
    return rows


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


def markdown_of(files: Mapping[str, Sequence[Bench]]) -> tuple[str, str]:
    """Return the name of the README block of one benchmark, and its Markdown table.

    Args:
        files: stored results by file.

    Raises:
        RobustCliError: files belong to different benchmarks.
    """
    benches = [bench for found in files.values() for bench in found]
    kind = type(benches[0])
    if any(type(bench) is not kind for bench in benches):
        named = ", ".join(f"{path} is of {found[0].block}" for path, found in files.items())
        raise RobustCliError(f"{named}; give those of one")
    rows_of, text_of = _PARTS[kind]
    text = "" if text_of is None else text_of(benches)
    paragraph = f"\n{_paragraph(text)}\n" if text else ""
    return kind.block, f"{markdown(rows_of(benches))}{paragraph}\n{_machines(benches)}.\n"


def _machines(benches: Sequence[Bench]) -> str:
    """Describe every machine once, with all packages and the range of its load."""
    same: dict[str, list[Bench]] = {}
    for bench in benches:
        same.setdefault(bench.describe_machine(load="LOAD"), []).append(bench)
    lines = []
    for line, found in same.items():
        low, high = (choose(bench.machine.load for bench in found) for choose in (min, max))
        load = f"{low}" if low == high else f"{low} to {high}"
        peers = dict.fromkeys(peer for bench in found for peer in bench.describe_peers())
        lines.append(", ".join([line.replace("LOAD", load), *peers]))
    return "; ".join(lines)


def _paragraph(text: str) -> str:
    """Lines as one Markdown paragraph; indented ones become a list below it."""
    lines = text.splitlines()
    items = [f"- {line.strip()}" for line in lines if line.startswith(" ")]
    paragraph = "; ".join(line for line in lines if not line.startswith(" "))
    return "\n".join([paragraph, "", *items]) if items else f"{paragraph}."


def _summary(results: Sequence[ConformanceBench]) -> Rows:
    """Return one row per network and threat: robust accuracies, and images that only one engine breaks."""
    benches = merged(results)
    parts = tuple(dict.fromkeys(row.part for bench in benches for row in bench.rows))
    rows: Rows = [("network", "threat", "images", *parts)]
    for bench in benches:
        cells = dict.fromkeys(parts, "")
        for row in bench.rows:
            native, package = (100 * count / (row.runs * bench.images) for count in (row.native, row.package))
            alone = f"{len(row.broken_by_native_alone)}, {len(row.broken_by_package_alone)}"
            runs = "" if row.runs == 1 else f"; {row.runs} runs"
            cells[row.part] = f"{native:.1f} / {package:.1f} ({alone}{runs})"
        name = bench.subject + ("" if bench.precision == "fp32" else f", {bench.precision}")
        rows.append((name, bench.threat, str(bench.images), *cells.values()))
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of a header and rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def terminal(rows: Sequence[Sequence[str]]) -> Table:
    """Return a terminal table of a header and rows."""
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _pair(passes: Sequence[float]) -> str:
    return f"{passes[0]:,.0f} + {passes[1]:,.0f}"


def _images(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{len(numbers)}: {shown}{', ...' if len(numbers) > 8 else ''}" if numbers else "0"


# Functions for the table and the sentence of each benchmark.
_PARTS: dict[type[Bench], tuple[Callable[[Any], Rows], Callable[[Any], str] | None]] = {
    TrainingBench: (training_rows, None),
    EvaluationBench: (evaluation_rows, None),
    DataBench: (data_rows, describe_decoding),
    ArchitectureBench: (architecture_rows, describe_architectures),
    ScalingBench: (scaling_rows, describe_scaling),
    SpeedBench: (speed_rows, None),
    QuickBench: (quick_rows, describe_quick),
    ConformanceBench: (_summary, lambda results: describe_conformance(merged(results))),
}
