"""Model card of a run: what it is, its numbers with verdicts, how to use it, and every digest."""

from collections.abc import Mapping

from robustcli.evaluation.wording import warning_lines
from robustcli.reports.results import cells_of
from robustcli.reports.tables import markdown_table
from robustcli.specs.check import to_plain
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import to_yaml
from robustcli.store.provenance import Session
from robustcli.store.results import RunResults


def model_card(
    spec: ExperimentSpec, results: RunResults, session: Session, digests: Mapping[str, str], *, name: str
) -> str:
    """Return the card as Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        session: the last process that worked on the run.
        digests: SHA-256 by what it is about.
        name: how `robustcli.load` names the model, such as hf:ORG/REPO.
    """
    parts = [
        _front(spec),
        f"# {spec.name}",
        _about(spec, results),
        "## Robustness",
        _table(results),
        "\n".join(f"- {line}" for line in warning_lines(results.evaluations)),
        "## Use",
        _use(name),
        "## Digests",
        markdown_table(("", "SHA-256"), ((title, f"`{value}`") for title, value in digests.items())).rstrip(),
        "## Environment",
        _environment(session),
        "## Spec",
        f"```yaml\n{spec.to_yaml()}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(spec: ExperimentSpec) -> str:
    facts = {
        "library_name": "robustcli",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", spec.defense.name],
        "datasets": [spec.data.name],
    }
    return f"---\n{to_yaml(facts)}---"


def _about(spec: ExperimentSpec, results: RunResults) -> str:
    settings = {key: value for key, value in to_plain(spec.architecture.parameters).items() if value is not None}
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    chosen = (
        f"{results.selection.by} accuracy on {results.selection.images}" if results.selection.images else "last epoch"
    )
    return (
        f"`{spec.architecture.name}`{f' ({words})' if words else ''} trained on `{spec.data.name}` with the defense "
        f"`{spec.defense.name}` against {results.threat}, seed {spec.seed}. Training {results.status}; weights "
        f"selected by {chosen}. It takes pixels in [0, 1] and normalizes them itself."
    )


def _table(results: RunResults) -> str:
    columns = ("evaluation", "threat", "images", "clean %", "robust % [95 %]", "verdict")
    rows = []
    for key, found in results.evaluations.items():
        name, threat, *rest = cells_of(results, key)
        rows.append((name, threat, f"{found.total:,}", *rest))
    return markdown_table(columns, rows, numbers=columns[2:5]).rstrip()


def _use(name: str) -> str:
    return (
        f'```python\nimport robustcli\n\nmodel = robustcli.load("{name}")  # pixels in [0, 1] -> logits\n```\n\n'
        f"```sh\nrobust eval {name} --attack autoattack\nrobust verify {name}\n```\n\n"
        "The second command recomputes what is stated here from the weights and the images, without attacking."
    )


def _environment(session: Session) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in session.versions.items() if version)
    commit = f" Commit {session.commit}{' with changes' if session.dirty else ''}." if session.commit else ""
    return f"{session.device}, {session.platform}, Python {session.python}, {versions}.{commit}"
