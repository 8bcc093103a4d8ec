"""Tables and lines of text for `robust plan`."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from robustcli.measuring.formats import format_megabytes, format_ratio
from robustcli.measuring.machine import format_machine
from robustcli.reports.tables import plain_table
from robustcli.store.sweep_rows import PassCounts

_GIB = 2**30


def tables_of(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of times and of savings."""
    if not found["fits"]:
        return []
    tables = [_times(found)]
    if found["savings"]:
        tables.append(_savings(found))
    return tables


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Return lines about the network, the images, memory, assumptions and the machine."""
    images = found["images"]
    sizes = images["sizes"]
    passes = found["passes_per_image"]
    made = "not counted, because this network has no convolution"
    if passes is not None:
        made = (
            f"{passes['forwards']:g} forward, {passes['input_gradients']:g} input-gradient, "
            f"{passes['weight_gradients']:g} weight-gradient"
        )
    lines = [
        f"network: {found['parameters']:,} parameters, {found['macs'] / 1e9:.4f} G multiply-accumulates for an image "
        f"of {images['shape']}",
        f"passes of an update, per image: {made}",
        f"images: {sizes['train']:,} for training, {sizes['val']:,} for validation, {sizes['test']:,} for testing",
    ]
    if images["replaced"]:
        lines.append(f"note: {images['replaced']}")
    lines.append(_memory(found))
    lines += [f"note: {note}" for note in found["notes"]]
    return [*lines, format_machine(found)]


def sweep_table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of the rows of a sweep and their sum; every seed is a run.

    Rows of a dry run have a status of their runs: how many are left, and the time for these. Their memory is not shown,
    because one process has measured all of them.
    """
    is_dry = all("left" in found for found in rows.values())
    last = ("left", "time left") if is_dry else ("processor", "memory GiB")
    columns = ("row", "passes", "s per update", "one run", "runs", "all runs", *last)
    table = plain_table(columns, text=("row",), title=f"plan of {name}")
    totals = [0.0, 0.0, 0.0]
    for row, found in rows.items():
        if not found["fits"]:
            table.add_row(row, "", "does not fit")
            continue
        seconds, runs, left = found["seconds"]["middle"], found["seeds"], found.get("left", 0)
        times = (runs * seconds["wall"], runs * seconds["cpu"], left * seconds["wall"])
        totals = [total + time for total, time in zip(totals, times, strict=True)]
        passes = found["passes_per_image"]
        status = (str(left), time_of(times[2])) if is_dry else (time_of(times[1]), _gib(found))
        table.add_row(
            row,
            "" if passes is None else f"{PassCounts(**passes).total:g}",
            f"{found['training']['update']['wall']:.4f}",
            time_of(seconds["wall"]),
            str(runs),
            time_of(times[0]),
            *status,
        )
    runs, left = (str(sum(found.get(key, 0) for found in rows.values())) for key in ("seeds", "left"))
    sums = (left, time_of(totals[2])) if is_dry else (time_of(totals[1]), "")
    table.add_row("all rows", "", "", "", runs, time_of(totals[0]), *sums, style="bold")
    return table


def _gib(found: Mapping[str, Any]) -> str:
    return f"{found['memory']['peak'] / _GIB:.1f}"


def time_of(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _times(found: Mapping[str, Any]) -> Table:
    training = found["training"]
    table = Table(title=f"{found['name']}, digest {found['digest']}", title_justify="left")
    for column in ("", "how much", "each"):
        table.add_column(column)
    for column in ("peak MB", "time", "processor"):
        table.add_column(column, justify="right")
    table.add_row("start", "imports and images", "", "", *_both(found["start"], found["start"]))
    table.add_row(
        "training",
        f"{training['epochs']} epochs, {training['updates']:,} updates of {training['batch_size']}",
        f"{_fine(training['update']['wall'])} (slowest of {training['measured']}: "
        f"{_fine(training['slowest']['wall'])})",
        format_megabytes(training),
        *_both(training["seconds"], training["seconds"]),
    )
    epochs = training["epochs"]
    check = {bound: _times_all(training["check"][bound], epochs) for bound in ("low", "high")}
    table.add_row("checks", f"{epochs}", _range(training["check"]), "", *_both(check["low"], check["high"]))
    end = _times_all(training["epoch_end"], epochs)
    table.add_row("averaging, files", f"{epochs}", _fine(training["epoch_end"]["wall"]), "", *_both(end, end))
    for key, cost in found["evaluations"].items():
        seconds = cost["seconds"]
        both = _both(seconds["low"], seconds["high"])
        table.add_row(key, f"{cost['images']:,} images", _passes(cost), format_megabytes(cost), *both)
    table.add_row("total", "", "", "", *_both(found["seconds"]["low"], found["seconds"]["high"]), style="bold")
    return table


def _passes(cost: Mapping[str, Any]) -> str:
    passes, survivors = cost["passes_per_survivor"], cost["survivors"]
    text = f"{passes['forwards']:,.0f} + {passes['gradients']:,.0f} passes per survivor"
    if survivors is None:
        return "1 forward"
    low, high = 100 * survivors["low"], 100 * survivors["high"]
    share = f"{low:.0f} %" if low == high else f"{low:.0f} to {high:.0f} %"
    return f"{text} ({share}), {cost['passes_per_broken_image']:,.0f} otherwise"


def _savings(found: Mapping[str, Any]) -> Table:
    table = Table(title="updates with other settings", title_justify="left")
    for column in ("override", "speed: median (min-max)", "result", "saves"):
        table.add_column(column)
    for row in found["savings"]:
        speed = row["speed"]
        saved = found["training"]["seconds"]["wall"] * (1 - 1 / speed["median"]) if speed else 0.0
        table.add_row(
            row["change"],
            format_ratio(speed),
            row["verdict"],
            time_of(saved) if row["verdict"] == "faster" else "",
        )
    return table


def _memory(found: Mapping[str, Any]) -> str:
    memory = found["memory"]
    peak = f"{memory['peak'] / _GIB:.2f} GiB"
    free = memory.get("free")
    of_free = "" if free is None else f"; {free / _GIB:.1f} GiB were free"
    if memory["is_resident_set"]:
        updates = f" ({memory['after_updates'] / _GIB:.2f} GiB after the updates)" if found["fits"] else ""
        return f"peak memory: {peak} resident{updates}{of_free}"
    return f"peak memory: {peak} of the {memory['device'] / _GIB:.1f} GiB of the device{of_free}"


def _both(low: Mapping[str, float], high: Mapping[str, float]) -> tuple[str, str]:
    return _between(low["wall"], high["wall"]), _between(low["cpu"], high["cpu"])


def _between(low: float, high: float) -> str:
    first, second = time_of(low), time_of(high)
    return first if first == second else f"{first} to {second}"


def _range(seconds: Mapping[str, Mapping[str, float]]) -> str:
    return _between(seconds["low"]["wall"], seconds["high"]["wall"])


def _times_all(seconds: Mapping[str, float], times: int) -> dict[str, float]:
    return {clock: times * value for clock, value in seconds.items()}


def _fine(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
