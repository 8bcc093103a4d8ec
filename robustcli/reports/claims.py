"""Reproduced accuracies next to a published claim, as a table with notes."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from robustcli.evaluation.wording import percent
from robustcli.reports.tables import plain_table
from robustcli.store.results import Claim, RunResults
from robustcli.workflows.reproduce import Comparison


def claim_table(compared: Sequence[Comparison], claim: Claim) -> Table:
    """Claimed and reproduced accuracy with interval, gap and verdict."""
    source = ", ".join(part for part in (claim.source, claim.table) if part)
    is_mean = any(len(row.accuracies) > 1 for row in compared)
    got = "mean % [95 % of a run]" if is_mean else "got % [95 %]"
    columns = ("metric", "claimed %", got, "gap", "verdict")
    table = plain_table(columns, text=("metric", "verdict"), title=f"Claim of {source}")
    for row in compared:
        found = f"{percent(row.got)} [{percent(row.low)}, {percent(row.high)}]"
        table.add_row(row.metric, percent(row.claimed), found, f"{100 * row.gap:+.1f}", row.verdict)
    return table


def claim_lines(compared: Sequence[Comparison], claim: Claim, results: Sequence[RunResults]) -> Iterator[str]:
    """Yield gaps as text, accuracies of every seed, and conditions of the claim next to ours."""
    for row in compared:
        yield row.sentence
        if len(row.accuracies) > 1:
            seeds = (f"{percent(one)} (seed {found.seed})" for one, found in zip(row.accuracies, results, strict=True))
            yield f"{row.metric}: {', '.join(seeds)}"
    selection = results[0].selection
    ours = f"{selection.by}{f' on {selection.images} images' if selection.images else ' epoch'}"
    yield f"selection: source {claim.selection or 'not stated'}; here {ours}"
    if claim.hardware:
        yield f"hardware: source {claim.hardware}"
    if claim.note:
        yield f"note: {claim.note}"
