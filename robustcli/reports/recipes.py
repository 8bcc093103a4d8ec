"""The index of shipped experiments as Markdown."""

from itertools import groupby

from robustcli.reports.tables import markdown_table
from robustcli.specs import experiments
from robustcli.specs.settings import Claim
from robustcli.specs.spec import ExperimentSpec

# Block of a file that contains the index.
BLOCK = "recipes"


def recipe_index() -> str:
    """Return one Markdown table per folder of shipped experiments: purpose, published claim and source."""
    columns = ("experiment", "what it does", "published result", "source")
    folders = groupby((*experiments.names(), *experiments.sweeps()), key=lambda name: name.partition("/")[0])
    return "".join(f"\n### {folder}\n\n{markdown_table(columns, map(_cells, names))}" for folder, names in folders)


def _cells(name: str) -> tuple[str, ...]:
    claim = None if name in experiments.sweeps() else ExperimentSpec.read(experiments.find(name)).claim
    return f"[{name}]({name}.yaml)", experiments.summary(name), *_claim_cells(claim)


def _claim_cells(claim: Claim | None) -> tuple[str, str]:
    """Return the claimed accuracies in percent, and where they were published; empty cells without a claim."""
    if claim is None:
        return "", ""
    metrics = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in claim.metrics.items())
    return metrics, "; ".join(filter(None, (claim.source, claim.table)))
