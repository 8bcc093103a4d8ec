"""Tables and lines of text for `robust plan`."""

from collections.abc import Iterable, Mapping

from rich.table import Table

from robustcli.evaluation.wording import duration
from robustcli.reports.tables import plain_table
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
    table.add_row(f"training, {found.updates:,} updates", duration(found.training_seconds))
    table.add_row("checks after epochs", _between(found.check_seconds))
    for key, seconds in found.evaluation_seconds.items():
        table.add_row(key, _between(seconds))
    table.add_row("total", _between(found.seconds), style="bold")
    return table


def lines_of(found: Plan) -> list[str]:
    """Return lines about memory, assumptions and the machine."""
    replaced = [] if found.images.replaced is None else [found.images.replaced]
    notes = [f"note: {note}" for note in (*replaced, *found.notes)]
    return [_memory(found.memory), *notes, found.machine.describe()]


def sweep_table(name: str, rows: Mapping[str, RowPlan]) -> Table:
    """Return a table of the rows of a sweep and their sum; every seed is a run.

    If the status of the runs is known, it also shows how many are left, and the time for these.
    """
    is_dry = all(found.runs is not None for found in rows.values())
    columns = ("row", "s per update", "one run", "runs", "all runs", *(("left", "time left") if is_dry else ()))
    table = plain_table(columns, text=("row",), title=f"plan of {name}")
    for row, found in rows.items():
        training = found.plan.training
        if training is None:
            table.add_row(row, "does not fit")
            continue
        one = duration(found.plan.seconds.middle)
        table.add_row(row, f"{training.update:.4f}", one, *_runs([found], with_left=is_dry))
    table.add_row("all rows", "", "", *_runs(rows.values(), with_left=is_dry), style="bold")
    return table


def _runs(rows: Iterable[RowPlan], *, with_left: bool) -> list[str]:
    """Return number and time of all runs, and of those that are left."""
    counts = [(found.seeds, found.left, found.plan.seconds.middle) for found in rows]
    everything = sum(seeds for seeds, _, _ in counts), sum(seeds * seconds for seeds, _, seconds in counts)
    left = sum(left for _, left, _ in counts), sum(left * seconds for _, left, seconds in counts)
    return [text for runs, seconds in [everything, left][: 1 + with_left] for text in (str(runs), duration(seconds))]


def _times(found: Plan, training: TrainingPlan) -> Table:
    columns = ("", "how much", "each", "time")
    table = plain_table(columns, text=columns[:3], title=f"{found.name}, digest {found.digest}")
    epochs = training.epochs
    table.add_row("start", "importing libraries, reading the images", "", duration(found.start))
    updates = f"{epochs} epoch{'s' * (epochs != 1)}, {training.updates:,} updates of {training.batch_size}"
    table.add_row("training", updates, _fine(training.update), duration(training.seconds))
    table.add_row("checks", f"{epochs}", _fine(training.check.middle), _between(training.check * epochs))
    for key, cost in found.evaluations.items():
        table.add_row(key, _size(cost), "", _between(cost.seconds))
    table.add_row("total", "", "", _between(found.seconds), style="bold")
    return table


def _size(cost: EvaluationPlan) -> str:
    """Return the number of images, and the share that is assumed to survive."""
    if cost.survivors is None:
        return f"{cost.images:,} images"
    low, high = 100 * cost.survivors.low, 100 * cost.survivors.high
    share = f"{low:.0f} %" if low == high else f"{low:.0f} to {high:.0f} %"
    return f"{cost.images:,} images, of which {share} survive"


def _savings(found: Plan, training: TrainingPlan) -> Table:
    columns = ("override", "speed: median (min-max)", "result", "saves")
    table = plain_table(columns, text=columns, title="updates with other settings")
    for saving in found.savings:
        speed = saving.speed
        if speed is None:
            table.add_row(saving.change, "", saving.verdict, "")
            continue
        saved = duration(training.seconds * (1 - 1 / speed.median)) if saving.verdict == "faster" else ""
        table.add_row(saving.change, str(speed), saving.verdict, saved)
    return table


def _memory(memory: Memory) -> str:
    of_free = "" if memory.free is None else f"; {memory.free / _GIB:.1f} GiB were free"
    kind = "resident" if memory.device is None else f"of the {memory.device / _GIB:.1f} GiB of the device"
    return f"peak memory: {memory.peak / _GIB:.2f} GiB {kind}{of_free}"


def _between(seconds: Bounds) -> str:
    first, second = duration(seconds.low), duration(seconds.high)
    return first if first == second else f"{first} to {second}"


def _fine(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
