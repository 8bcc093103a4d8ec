"""Markdown and terminal tables of the results of benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from robustcli.bench.conformance import TOLERANCE, average_points, beyond, by_chance, holds, merged
from robustcli.bench.cost_tables import (
    Results,
    Rows,
    architecture_rows,
    data_rows,
    describe_architectures,
    describe_scaling,
    evaluation_rows,
    scaling_rows,
    shown,
    training_rows,
)
from robustcli.bench.decoding import describe_decoding
from robustcli.bench.results import ConformanceBench, SpeedBench, typed
from robustcli.errors import RobustCliError
from robustcli.measuring.machine import format_machine, format_peers

_SPEED = ("network", "threat", "images", "engine", "seconds", "time over the limit's", "speed: median (min-max)",
          "result", "robust", "passes per survivor", "passes per broken image")  # fmt: skip
_CONFORMANCE = ("network", "threat", "images", "attack", "native %", "package %", "points [95 %]",
                "broken only by native", "only by the package")  # fmt: skip


def speed_rows(results: Results) -> Rows:
    """Return the table of `robust bench autoattack`; passes are forward + gradient passes."""
    rows: Rows = [_SPEED]
    for bench in typed(SpeedBench, results):
        for row in bench.rows:
            is_mean = "survivor" not in row.passes
            passes = row.passes["right when clean" if is_mean else "survivor"]
            rows.append(
                (
                    bench.subject,
                    bench.threat,
                    str(bench.images),
                    row.name,
                    f"{row.seconds.median:.2f}",
                    shown(row.over_limit),
                    "1" if row.speed is None else str(row.speed),
                    row.verdict or "",
                    "" if row.robust is None else str(row.robust),
                    _pair(passes) + (" (mean of all right when clean)" if is_mean else ""),
                    _pair(row.passes["broken"]) if "broken" in row.passes else "",
                )
            )
    return rows


def conformance_rows(results: Results) -> Rows:
    """Return the table of `robust bench conformance`."""
    rows: Rows = [_CONFORMANCE]
    for bench in typed(ConformanceBench, results):
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


def describe_conformance(results: Results | Sequence[ConformanceBench]) -> str:
    """Return the verdict in one sentence."""
    benches = typed(ConformanceBench, results)
    means = ", ".join(f"{part} {points:+.2f}" for part, points in average_points(benches).items())
    comparisons, odd = sum(len(bench.rows) for bench in benches), beyond(benches)
    named = f" ({'; '.join(odd)})" if odd else ""
    return (
        f"native minus package robust accuracy, mean points: {means}, with a tolerance of {TOLERANCE}; of "
        f"{comparisons} comparisons {len(odd)} are outside their 95 % interval{named}, and for equal attacks up to "
        f"{by_chance(comparisons)} would be; equal results: {'confirmed' if holds(benches) else 'NOT CONFIRMED'}"
    )


def markdown_of(results: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of the README block of one benchmark, and its Markdown table.

    Args:
        results: stored results by file.

    Raises:
        RobustCliError: a file has other contents, or files belong to different benchmarks.
    """
    kinds = {path: _kind(path, found) for path, found in results.items()}
    if len(set(kinds.values())) > 1:
        raise RobustCliError(f"{', '.join(f'{path} is of {kind}' for path, kind in kinds.items())}; give those of one")
    everything = [head for found in results.values() for head in _heads(found)]
    kind = next(iter(kinds.values()))
    if kind == "speed":
        return kind, f"{markdown(speed_rows(everything))}\n{_machines(everything)}.\n"
    if kind == "conformance":
        benches = merged(typed(ConformanceBench, everything))
        words = f"{describe_conformance(benches)}.\n\n{_machines(everything)}"
        return kind, f"{markdown(_summary(benches))}\n{words}.\n"
    rows_of, words_of = _PARTS[kind]
    said = "" if words_of is None else words_of(everything)
    words = f"\n{_paragraph(said)}\n" if said else ""
    return kind, f"{markdown(rows_of(everything))}{words}\n{_machines(everything)}.\n"


def _machines(heads: Sequence[Mapping[str, Any]]) -> str:
    """Describe every machine once, with all packages and the range of its load."""
    loads: dict[str, list[float]] = {}
    peers: dict[str, dict[str, None]] = {}
    for head in heads:
        words = format_machine({**head, "machine": {**head["machine"], "load": "LOAD"}, "peers": {}})
        loads.setdefault(words, []).append(head["machine"]["load"])
        peers.setdefault(words, {}).update(dict.fromkeys(format_peers(head)))

    def loads_of(found: list[float]) -> str:
        return f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"

    return "; ".join(
        ", ".join([words.replace("LOAD", loads_of(found)), *peers[words]]) for words, found in loads.items()
    )


def _paragraph(text: str) -> str:
    """Lines as one Markdown paragraph; indented ones become a list below it."""
    lines = text.splitlines()
    items = [f"- {line.strip()}" for line in lines if line.startswith(" ")]
    paragraph = "; ".join(line for line in lines if not line.startswith(" "))
    return "\n".join([paragraph, "", *items]) if items else f"{paragraph}."


def _heads(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _kind(path: str, found: Any) -> str:
    """Return the block of the results of a file."""
    heads = _heads(found)
    known = ("rows", "axes", "defenses")
    if not heads or not all(isinstance(head, Mapping) and any(head.get(key) for key in known) for head in heads):
        raise RobustCliError(f"{path}: not a result of `robust bench --out`")
    if "defenses" in heads[0]:
        return "training speed"
    if "bench" in heads[0]:
        return _BLOCKS[heads[0]["bench"]]
    return "conformance" if "part" in heads[0]["rows"][0] else "speed"


# Blocks by benchmark, and functions for the table and the sentence of each.
_BLOCKS = {
    "evaluation": "evaluation speed",
    "data": "data speed",
    "architectures": "architecture speed",
    "scaling": "scaling",
}
_PARTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], str] | None]] = {
    "training speed": (training_rows, None),
    "evaluation speed": (evaluation_rows, None),
    "data speed": (data_rows, describe_decoding),
    "architecture speed": (architecture_rows, describe_architectures),
    "scaling": (scaling_rows, describe_scaling),
}


def _summary(benches: Sequence[ConformanceBench]) -> Rows:
    """Return one row per network and threat: robust accuracies, and images that only one engine breaks."""
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
