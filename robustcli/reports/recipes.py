"""The index of shipped experiments as Markdown."""

from collections.abc import Iterator

from robustcli.specs import experiments
from robustcli.specs.settings import Claim
from robustcli.specs.spec import ExperimentSpec

# Block of a file that contains the index.
BLOCK = "recipes"


def recipe_index() -> str:
    """Return one Markdown table per folder of shipped experiments: purpose, published claim and source."""
    return "\n".join(_tables())


def _tables() -> Iterator[str]:
    folder = None
    for name in (*experiments.names(), *experiments.sweeps()):
        if folder != (folder := name.partition("/")[0]):
            yield f"\n### {folder}\n"
            yield "| experiment | what it does | published result | source |\n| --- | --- | --- | --- |"
        claim = None if name in experiments.sweeps() else ExperimentSpec.read(experiments.find(name)).claim
        cells = (f"[{name}]({name}.yaml)", experiments.summary(name), *_claim_cells(claim))
        yield f"| {' | '.join(cells)} |"
    yield ""


def _claim_cells(claim: Claim | None) -> tuple[str, str]:
    """Return the claimed accuracies in percent, and where they were published; empty cells without a claim."""
    if claim is None:
        return "", ""
    metrics = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in claim.metrics.items())
    return metrics, "; ".join(filter(None, (claim.source, claim.table)))
