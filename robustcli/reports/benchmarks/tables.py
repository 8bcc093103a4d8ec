"""Table and sentences of every benchmark, in a README and in a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from robustcli.bench.conformance import merged
from robustcli.bench.results.architectures import ArchitectureBench
from robustcli.bench.results.autoattack import SpeedBench
from robustcli.bench.results.bases import Bench
from robustcli.bench.results.conformance import ConformanceBench
from robustcli.bench.results.data import DataBench
from robustcli.bench.results.evaluation import EvaluationBench
from robustcli.bench.results.quick import QuickBench
from robustcli.bench.results.scaling import ScalingBench
from robustcli.bench.results.training import TrainingBench
from robustcli.errors import RobustCliError
from robustcli.reports.benchmarks.attacks import evaluation_rows, speed_rows
from robustcli.reports.benchmarks.conformance import (
    conformance_rows,
    describe_conformance,
    describe_quick,
    network_rows,
    quick_rows,
)
from robustcli.reports.benchmarks.costs import (
    architecture_rows,
    data_rows,
    describe_architectures,
    describe_decoding,
    describe_scaling,
    scaling_rows,
)
from robustcli.reports.benchmarks.training import training_rows
from robustcli.reports.tables import markdown_table

Row = dict[str, str]


def _nothing(_benches: Sequence[Bench]) -> str:
    return ""


# Functions for the rows and the sentences of each benchmark.
_PARTS: dict[type[Bench], tuple[Callable[[Any], Iterator[Row]], Callable[[Any], str]]] = {
    TrainingBench: (training_rows, _nothing),
    EvaluationBench: (evaluation_rows, _nothing),
    DataBench: (data_rows, describe_decoding),
    ArchitectureBench: (architecture_rows, describe_architectures),
    ScalingBench: (scaling_rows, describe_scaling),
    SpeedBench: (speed_rows, _nothing),
    QuickBench: (quick_rows, describe_quick),
    ConformanceBench: (conformance_rows, describe_conformance),
}


def terminal_of(benches: Sequence[Bench]) -> tuple[Table, str]:
    """Return the table of the results of one benchmark, and the sentences below it."""
    rows_of, text_of = _PARTS[type(benches[0])]
    return terminal(list(rows_of(benches))), text_of(benches)


def markdown_of(files: Mapping[str, Sequence[Bench]]) -> tuple[str, str]:
    """Return the name of the README block of one benchmark, and its Markdown table.

    Args:
        files: stored results by file.

    Raises:
        RobustCliError: files belong to different benchmarks.
    """
    benches: Sequence[Any] = [bench for found in files.values() for bench in found]
    kind = type(benches[0])
    if any(type(bench) is not kind for bench in benches):
        named = ", ".join(f"{path} is of {found[0].block}" for path, found in files.items())
        raise RobustCliError(f"{named}; give those of one")
    machines = _machines(benches)
    rows_of, text_of = _PARTS[kind]
    if kind is ConformanceBench:
        rows_of, benches = network_rows, merged(benches)
    text = text_of(benches)
    paragraph = f"\n{_paragraph(text)}\n" if text else ""
    return kind.block, f"{markdown(list(rows_of(benches)))}{paragraph}\n{machines}.\n"


def _machines(benches: Sequence[Bench]) -> str:
    """Describe every machine once, with all packages and the range of its load."""
    same: dict[str, list[Bench]] = {}
    for bench in benches:
        same.setdefault(bench.describe_machine(load=""), []).append(bench)
    lines = []
    for found in same.values():
        low, high = (choose(bench.machine.load for bench in found) for choose in (min, max))
        machine = found[0].describe_machine(load=f"{low}" if low == high else f"{low} to {high}")
        peers = dict.fromkeys(peer for bench in found for peer in bench.describe_peers())
        lines.append(", ".join([machine, *peers]))
    return "; ".join(lines)


def _paragraph(text: str) -> str:
    """Lines as one Markdown paragraph; indented ones become a list below it."""
    lines = text.splitlines()
    items = [f"- {line.strip()}" for line in lines if line.startswith(" ")]
    paragraph = "; ".join(line for line in lines if not line.startswith(" "))
    return "\n".join([paragraph, "", *items]) if items else f"{paragraph}."


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table of rows with equal columns."""
    return markdown_table(list(rows[0]) if rows else [], (row.values() for row in rows))


def terminal(rows: Sequence[Row]) -> Table:
    """Return a terminal table of rows with equal columns."""
    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(*row.values())
    return table
