"""Tables and lines of text for `robust plan`."""

from collections.abc import Mapping

from rich.table import Table

from robustcli.measuring.machine import format_machine
from robustcli.measuring.timing import Spread
from robustcli.reports.tables import plain_table
from robustcli.store.sweep_rows import PassCounts
from robustcli.workflows.plan.rates import Estimate
from robustcli.workflows.plan.result import Bounds, EvaluationPlan, Memory, Plan, RowPlan, TrainingPlan

_GIB = 2**30


def tables_of(found: Plan) -> list[Table]:
    """Return the tables of times and of savings."""
    if found.training is None:
        return []
    tables = [_times(found, found.training)]
    if found.savings:
        tables.append(_savings(found, found.training))
    return tables


def estimate_table(found: Estimate) -> Table:
    """Return the table of an estimate for another device."""
    table = plain_table(("", "time"), text=("",))
    table.add_row(f"training, {found.updates:,} updates", time_of(found.training))
    table.add_row("checks after epochs", _between(found.check))
    for key, seconds in found.evaluations.items():
        table.add_row(key, _between(seconds))
    table.add_row("total", _between(found.seconds), style="bold")
    return table


def lines_of(found: Plan) -> list[str]:
    """Return lines about the network, the images, memory, assumptions and the machine."""
    passes, sizes = found.passes_per_image, found.images.sizes
    made = "not counted, because this network has no convolution"
    if passes is not None:
        made = (
            f"{passes.forwards:g} forward, {passes.input_gradients:g} input-gradient, "
            f"{passes.weight_gradients:g} weight-gradient"
        )
    return [
        f"network: {found.parameters:,} parameters, {found.macs / 1e9:.4f} G multiply-accumulates for an image of "
        f"{found.images.shape}",
        f"passes of an update, per image: {made}",
        f"images: {sizes['train']:,} for training, {sizes['val']:,} for validation, {sizes['test']:,} for testing",
        *([f"note: {found.images.replaced}"] if found.images.replaced else []),
        _memory(found.memory),
        *(f"note: {note}" for note in found.notes),
        format_machine(found.machine),
    ]


def sweep_table(name: str, rows: Mapping[str, RowPlan]) -> Table:
    """Return a table of the rows of a sweep and their sum; every seed is a run.

    Rows of a dry run have a status of their runs: how many are left, and the time for these. Their memory is not shown,
    because one process has measured all of them.
    """
    is_dry = all(found.runs is not None for found in rows.values())
    columns = (
        "row",
        "passes",
        "s per update",
        "one run",
        "runs",
        "all runs",
        *(("left", "time left") if is_dry else ("memory GiB",)),
    )
    table = plain_table(columns, text=("row",), title=f"plan of {name}")
    total, left = 0.0, 0.0
    for row, found in rows.items():
        training, passes = found.plan.training, found.plan.passes_per_image
        if training is None:
            table.add_row(row, "", "does not fit")
            continue
        seconds = found.plan.seconds.middle
        total, left = total + found.seeds * seconds, left + found.left * seconds
        table.add_row(
            row,
            "" if passes is None else f"{PassCounts(**vars(passes)).total:g}",
            f"{training.update:.4f}",
            time_of(seconds),
            str(found.seeds),
            time_of(found.seeds * seconds),
            *(
                (str(found.left), time_of(found.left * seconds))
                if is_dry
                else (f"{found.plan.memory.peak / _GIB:.1f}",)
            ),
        )
    runs = str(sum(found.seeds for found in rows.values()))
    rest = (str(sum(found.left for found in rows.values())), time_of(left)) if is_dry else ("",)
    table.add_row("all rows", "", "", "", runs, time_of(total), *rest, style="bold")
    return table


def time_of(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _times(found: Plan, training: TrainingPlan) -> Table:
    table = Table(title=f"{found.name}, digest {found.digest}", title_justify="left")
    for column in ("", "how much", "each"):
        table.add_column(column)
    for column in ("peak MB", "time"):
        table.add_column(column, justify="right")
    epochs = training.epochs
    table.add_row("start", "imports and images", "", "", time_of(found.start))
    table.add_row(
        "training",
        f"{epochs} epochs, {training.updates:,} updates of {training.batch_size}",
        f"{_fine(training.update)} (slowest of {training.measured}: {_fine(training.slowest)})",
        _megabytes(training.peak_bytes),
        time_of(training.seconds),
    )
    table.add_row("checks", f"{epochs}", _between(training.check), "", _between(training.check * epochs))
    table.add_row("averaging, files", f"{epochs}", _fine(training.epoch_end), "", time_of(epochs * training.epoch_end))
    for key, cost in found.evaluations.items():
        peak = _megabytes(cost.peak_bytes)
        table.add_row(key, f"{cost.images:,} images", _passes(cost), peak, _between(cost.seconds))
    table.add_row("total", "", "", "", _between(found.seconds), style="bold")
    return table


def _passes(cost: EvaluationPlan) -> str:
    if cost.survivors is None:
        return "1 forward"
    low, high = 100 * cost.survivors.low, 100 * cost.survivors.high
    share = f"{low:.0f} %" if low == high else f"{low:.0f} to {high:.0f} %"
    passes = cost.passes_per_survivor
    text = f"{passes.forwards:,.0f} + {passes.gradients:,.0f} passes per survivor"
    return f"{text} ({share}), {cost.passes_per_broken_image:,.0f} otherwise"


def _savings(found: Plan, training: TrainingPlan) -> Table:
    table = Table(title="updates with other settings", title_justify="left")
    for column in ("override", "speed: median (min-max)", "result", "saves"):
        table.add_column(column)
    for saving in found.savings:
        is_faster = saving.speed is not None and saving.verdict == "faster"
        saved = training.seconds * (1 - 1 / saving.speed.median) if saving.speed is not None else 0.0
        table.add_row(saving.change, _ratio(saving.speed), saving.verdict, time_of(saved) if is_faster else "")
    return table


def _memory(memory: Memory) -> str:
    peak = f"{memory.peak / _GIB:.2f} GiB"
    of_free = "" if memory.free is None else f"; {memory.free / _GIB:.1f} GiB were free"
    if memory.is_resident_set:
        after = memory.after_updates
        updates = "" if after is None else f" ({after / _GIB:.2f} GiB after the updates)"
        return f"peak memory: {peak} resident{updates}{of_free}"
    return f"peak memory: {peak} of the {(memory.device or 0) / _GIB:.1f} GiB of the device{of_free}"


def _between(seconds: Bounds) -> str:
    first, second = time_of(seconds.low), time_of(seconds.high)
    return first if first == second else f"{first} to {second}"


def _fine(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _ratio(ratio: Spread | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
