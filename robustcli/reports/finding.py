"""A finding as text for the terminal, and all findings as one Markdown table."""

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from rich.table import Table

from robustcli.reports.tables import markdown_table
from robustcli.specs import experiments
from robustcli.store.finding_results import Comparison, FindingResult, read_finding
from robustcli.workflows.sweep_spec import Sweep

# Block of a file that contains the table of all findings.
BLOCK = "findings"


def values_table(found: FindingResult) -> Table:
    """One line per arm: mean and standard deviation over the seeds of every metric."""
    seeds = ", ".join(map(str, found.seeds))
    table = Table("arm", *found.values, title=f"{found.name}, seeds {seeds}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in dict.fromkeys(arm for by_arm in found.values.values() for arm in by_arm):
        table.add_row(arm, *(_mean_and_deviation(by_arm.get(arm, ())) for by_arm in found.values.values()))
    return table


def verdict_lines(found: FindingResult) -> Iterator[str]:
    """Comparisons with their intervals, then the verdict and what to know about it."""
    for part in found.comparisons:
        yield f"{_effect(part)} over seeds: {part.verdict}"
    yield f"{found.verdict}: {found.claim}"
    yield f"source: {found.reference}"
    yield f"reduced: {found.reduced}"
    if found.doubt:
        yield f"doubt: {found.doubt}"


def finding_index() -> str:
    """Return the Markdown table of all shipped findings with the stored verdicts."""
    columns = ("finding", "claim", "verdict", "effects (95 % interval over seeds)", "training", "reduced to")
    return f"\n{markdown_table(columns, map(_cells, experiments.findings()))}"


def _cells(name: str) -> tuple[str, ...]:
    finding = Sweep.read(experiments.find(name)).finding
    assert finding is not None, name
    short = name.partition("/")[2]
    link = f"[{short}]({short}.yaml)"
    file = experiments.folder() / "results" / "findings" / f"{short}.json"
    if not file.is_file():
        return link, finding.claim, "not run", "", "", finding.reduced
    found = read_finding(file)
    return (
        link,
        f"{found.claim} ({found.reference})",
        found.verdict,
        "<br>".join(f"{_effect(part)}, {part.verdict}" for part in found.comparisons),
        f"{found.training_seconds / 60:.0f} min, {len(found.seeds)} seeds",
        f"{found.reduced}{f' {found.doubt}' if found.doubt else ''}",
    )


def _effect(part: Comparison) -> str:
    low, high = part.interval
    return f"{part.text}: {part.mean:.2f} [{low:.2f}, {high:.2f}]"


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{fmean(values):.4g} ± {stdev(values):.2g}" if values else "-"
