"""Tables and sentences of `robust bench train`."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from robustcli.bench.results.training import TrainingBench, TrainingDefense, TrainingSettings
from robustcli.measuring.timing import AGAIN, ALONE

# Images of CIFAR-10's training set.
_EPOCH = 50_000


def training_rows(benches: Sequence[TrainingBench]) -> Iterator[dict[str, str]]:
    """Yield the rows for a README: one per update and implementation."""
    is_gpu = any(bench.settings.clock == "wall" for bench in benches)
    for bench in benches:
        for name, found in bench.defenses.items():
            ours, *others = found.rows
            of = {row.name: row for row in others}
            # Our row shows the run-to-run variation and the verdict on the limit, which have no rows.
            said = {ours.name: (f"again {of[AGAIN].ratio_text}", f"compared with the limit: {of[ALONE].verdict}")}
            for row in found.rows:
                if row.name in (AGAIN, ALONE):
                    continue
                ratio, verdict = said.get(row.name, (row.ratio_text, row.verdict or ""))
                speed = row.images_per_second
                yield {
                    "network": _network(bench.settings),
                    "batch": str(bench.settings.batch_size),
                    "update": bench.settings.method(name),
                    "by": row.name,
                    "passes": str(row.passes),
                    "images/s": f"{speed:.1f}",
                    **({"s per 50,000 images": f"{_EPOCH / speed:.1f}"} if is_gpu else {}),
                    "peak MB": row.peak,
                    "time / limit": str(row.over_limit),
                    "our speed / this row's: median (min-max)": ratio,
                    "ours is": verdict,
                }


def _network(settings: TrainingSettings) -> str:
    layout = ", channels_last" if settings.channels_last else ""
    compiled = ", compiled" if settings.compile else ""
    return f"{settings.network}, {settings.precision}{layout}{compiled}"


def terminal_table(name: str, result: TrainingDefense, settings: TrainingSettings) -> Table:
    """Return the table of one defense for a terminal."""
    parts = [
        settings.method(name),
        settings.network,
        f"batch {settings.batch_size}",
        settings.precision,
        "channels_last" if settings.channels_last else "plain format",
        *(["compiled"] if settings.compile else []),
    ]
    rows = [
        {
            "": row.name,
            "passes": str(row.passes),
            "images/s": f"{row.images_per_second:.1f}",
            "s per update": f"{row.seconds.median:.4f}",
            "peak MB": row.peak,
            "time / limit": str(row.over_limit),
            "our speed / this row's": row.ratio_text,
            "ours is": row.verdict or "",
        }
        for row in result.rows
    ]
    table = Table(title=", ".join(parts), title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row.values())
    return table


def describe_passes(result: TrainingDefense) -> str:
    """Return counted and minimal passes in one line."""
    passes = ", ".join(f"{count:g} {kind.replace('_', ' ')}" for kind, count in vars(result.passes).items())
    least = result.least_passes
    if least is None:
        return f"passes per image: {passes} (the minimum is not known; the passes made are timed)"
    return f"passes per image: {passes} ({'the minimum' if least == result.passes else f'minimum: {least}'})"


def describe_conditions(bench: TrainingBench) -> list[str]:
    """Return lines that explain the columns and rows of the terminal's tables."""
    seconds = "processor seconds" if bench.settings.clock == "cpu" else "wall-clock seconds"
    return [
        f"{bench.describe()}; {bench.settings.rounds} rounds in alternating order; {seconds}",
        "passes: forwards + backwards to the images + backwards to the weights, per image",
        "peak: memory of tensors at once, in addition to what was held before the update",
        "its passes alone: the same network, precision, format and programs, with nothing around the passes: the limit",
        "torchattacks, set as ours: same precision and format, not compiled, in this process, which keeps freed memory",
        "torchattacks, fp32 in the plain format: the same there",
        "torchattacks, as it comes: fp32 in the plain format, in a separate process, which keeps no freed memory",
        *(f"note: {note}" for note in bench.notes),
    ]
