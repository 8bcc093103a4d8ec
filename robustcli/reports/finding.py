"""A finding as text for the terminal, and all findings as one Markdown table."""

from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from rich.table import Table

from robustcli.specs import experiments
from robustcli.store.finding_results import FindingResult, read_finding
from robustcli.workflows.sweep_spec import Sweep

# Block of a file that contains the table of all findings.
BLOCK = "findings"


def values_table(found: FindingResult) -> Table:
    """One line per arm: mean and standard deviation over the seeds of every metric."""
    table = Table("arm", *found.values, title=f"{found.name}, seeds {_listed(found.seeds)}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in dict.fromkeys(arm for by_arm in found.values.values() for arm in by_arm):
        table.add_row(arm, *(_mean_and_deviation(by_arm.get(arm, ())) for by_arm in found.values.values()))
    return table


def verdict_lines(found: FindingResult) -> Iterator[str]:
    """Comparisons with their intervals, then the verdict and what to know about it."""
    for part in found.comparisons:
        low, high = part.interval
        yield f"{part.text}: {part.mean:.2f} [{low:.2f}, {high:.2f}] over seeds: {part.verdict}"
    yield f"{found.verdict}: {found.claim}"
    yield f"source: {found.reference}"
    yield f"reduced: {found.reduced}"
    if found.doubt:
        yield f"doubt: {found.doubt}"


def finding_index() -> str:
    """Return the Markdown table of all shipped findings with the stored verdicts."""
    return "\n".join(_index())


def _index() -> Iterator[str]:
    yield ""
    yield "| finding | claim | verdict | effects (95 % interval over seeds) | training | reduced to |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in experiments.findings():
        finding = Sweep.read(experiments.find(name)).finding
        assert finding is not None, name
        short = name.partition("/")[2]
        link = f"[{short}]({short}.yaml)"
        file = experiments.folder() / "results" / "findings" / f"{short}.json"
        if not file.is_file():
            yield f"| {link} | {finding.claim} | not run | | | {finding.reduced} |"
            continue
        found = read_finding(file)
        effects = "<br>".join(_effect(part.text, part.mean, part.interval, part.verdict) for part in found.comparisons)
        minutes = f"{found.training_seconds / 60:.0f} min, {len(found.seeds)} seeds"
        notes = f"{found.reduced}{f' {found.doubt}' if found.doubt else ''}"
        yield f"| {link} | {found.claim} ({found.reference}) | {found.verdict} | {effects} | {minutes} | {notes} |"
    yield ""


def _effect(text: str, center: float, interval: Sequence[float], verdict: str) -> str:
    low, high = interval
    return f"{text}: {center:.2f} [{low:.2f}, {high:.2f}], {verdict}"


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{fmean(values):.4g} ± {stdev(values):.2g}" if values else "-"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
