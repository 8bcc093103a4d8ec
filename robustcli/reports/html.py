"""`robust report --html`: runs and stored evaluations as one self-contained page that opens offline."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robustcli import __version__
from robustcli.errors import RobustCliError
from robustcli.evaluation.per_image import ImageResult, read_per_image
from robustcli.evaluation.wording import describe, interval, percent, threats_of
from robustcli.reports.charts import line_chart, scatter
from robustcli.reports.images import data_url, difference
from robustcli.reports.summary import Source
from robustcli.store.evaluations import Evaluation
from robustcli.store.files import read_json, write_text
from robustcli.store.records import Record
from robustcli.store.results import Results, RunResults
from robustcli.store.runs import RunFolder
from robustcli.workflows.examples import keys_with_examples, stored_examples
from robustcli.workflows.network_size import size_of_run

_TEMPLATE = Path(__file__).with_name("report.html.j2")
# Examples shown for each result, and classes up to which a confusion matrix is shown.
_EXAMPLES, _CLASSES = 8, 20
# Charts of training: title, unit, and the measures that are drawn if they were recorded.
_CURVES = (
    ("Loss", "loss", ("loss",)),
    ("Accuracy on held-out images", "accuracy %", ("clean", "robust", "fgsm")),
    ("Learning rate", "learning rate", ("lr",)),
    ("Radius of the attack", "eps", ("eps",)),
)
_IN_PERCENT = ("clean", "robust", "fgsm")


# Values that the template reads, by name.
View = dict[str, Any]


def write_page(path: Path, sources: Sequence[Source], damaged: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: file to write.
        sources: results to show; several of them get a leaderboard.
        damaged: one line for every file that could not be read.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    views = [_view(number, source) for number, source in enumerate(sources)]
    charts = list(_overview(sources))
    write_text(path, template.render(views=views, damaged=damaged, charts=charts, version=__version__))


def _overview(sources: Sequence[Source]) -> Iterator[str]:
    """Charts of several results: robust against clean accuracy, and against the cost of the network."""
    titles = [_title(source) for source in sources]
    accuracies, costs = {}, {}
    for title, source in zip(titles, sources, strict=True):
        name = title if titles.count(title) == 1 else f"{title}, {source.path.parent.name}"
        lowest, size = _lowest(source.results), size_of_run(source.path.parent)
        if lowest is not None:
            accuracies[name] = lowest
            if size is not None:
                costs[name] = (2 * size.macs / 1e9, lowest[1])
    if len(accuracies) > 1:
        yield scatter("Robust against clean accuracy", accuracies, "clean %", "robust %")
    if len({cost for cost, _ in costs.values()}) > 1:
        yield scatter("Robust accuracy against cost, with the Pareto front", costs, "GFLOPs", "robust %", front=True)


def _view(number: int, source: Source) -> View:
    results, folder = source.results, source.path.parent
    spec = RunFolder(folder).spec
    examples = _examples(folder)
    return {
        "anchor": f"result-{number}",
        "title": _title(source),
        "facts": list(_facts(source)),
        "evaluations": [_evaluation(results, key, folder) for key in results.evaluations],
        "curves": list(_curves(folder)) if isinstance(results, RunResults) else [],
        "diagnostics": list(_diagnostics(folder)),
        **examples,
        "notes": [*results.notes, *examples["notes"]],
        "spec": spec.read_text(encoding="utf-8") if spec.is_file() else "",
    }


def _title(source: Source) -> str:
    return source.title if source.seed is None else f"{source.title}, seed {source.seed}"


def _facts(source: Source) -> Iterator[tuple[str, str]]:
    """Conditions of a result, as pairs of name and value."""
    results = source.results
    yield "folder", str(source.path.parent)
    yield "threat model", str(results.threat)
    yield "device", source.device
    if isinstance(results, RunResults):
        yield "status", results.status
        images = f" on {results.selection.images} images" if results.selection.images else ""
        yield "weights selected by", f"{results.selection.by}{images}"
    else:
        yield "weights (SHA-256)", results.network.sha256
    yield "spec digest", results.spec_digest or "-"
    yield "data digest", results.data.digest
    for session in results.sessions(source.path.parent)[-1:]:
        yield "date", session.started
        yield "command", " ".join(session.command)
        yield "commit", f"{session.commit or '-'}{' (modified)' if session.dirty else ''}"
        yield "versions", ", ".join(f"{name} {version}" for name, version in session.versions.items() if version)


def _evaluation(results: Results, key: str, folder: Path) -> View:
    evaluation = results.evaluations[key]
    clean = results.clean_accuracy(key)
    files = RunFolder(folder).evaluation(key)
    lines, notes = [], []
    try:
        lines = read_per_image(files.per_image) if files.per_image.is_file() else []
    except RobustCliError as error:
        notes.append(f"results per image are not shown: {error}")
    return {
        "key": key,
        "title": describe(evaluation),
        "threat": "-" if evaluation.is_clean else threats_of(evaluation),
        "images": evaluation.total,
        "clean": "-" if clean is None else percent(clean),
        "accuracy": interval(evaluation),
        "verdict": evaluation.verdict or "no verdict",
        "sentence": _sentence(evaluation),
        "reasons": [*(evaluation.suspicions or []), *evaluation.warnings, *notes],
        "ladder": _ladder(evaluation),
        "per_class": _per_class(lines),
        "confusion": [] if evaluation.is_clean else _confusion(lines),
    }


def _sentence(evaluation: Evaluation) -> str:
    """Describe the result of an evaluation in a sentence."""
    what = "classified correctly" if evaluation.is_clean else f"still correct under {threats_of(evaluation)}"
    text = f"{evaluation.correct} of {evaluation.total} images are {what}: {interval(evaluation)} %."
    if evaluation.certified is not None:
        of = " of the smoothed network" if evaluation.certified.is_smoothed else ""
        text += f" Certified lower bound{of}: {interval(evaluation.certified)} %."
    if evaluation.verdict == "SUSPECT":
        return f"{text} Do not trust this number, for the reasons below."
    if evaluation.sample is not None:
        return f"{text} Some attacks ran only on a sample of the images, so it is an upper bound."
    if evaluation.is_upper_bound:
        return f"{text} Only one kind of attack was tried, so it is an upper bound."
    return text


def _ladder(evaluation: Evaluation) -> dict[str, int]:
    """Images that survive after each attack."""
    if not evaluation.stages:
        return {}
    left = {f"after {stage.name}": stage.entered - stage.broken for stage in evaluation.stages}
    return {"correct when clean": evaluation.stages[0].entered, **left}


def _per_class(lines: Sequence[ImageResult]) -> dict[str, float]:
    """Accuracy in percent by class; empty for many classes."""
    total = Counter(line.label for line in lines)
    if len(total) > _CLASSES:
        return {}
    right = Counter(line.label for line in lines if not line.broken_by)
    return {f"class {label}": round(100 * right[label] / count, 1) for label, count in sorted(total.items())}


def _confusion(lines: Sequence[ImageResult]) -> list[list[str]]:
    """Predicted class under attack (columns) of each true class (rows); [] for many classes."""
    classes = sorted({line.label for line in lines} | {line.prediction for line in lines})
    if not lines or len(classes) > _CLASSES:
        return []
    counts = Counter((line.label, line.prediction) for line in lines)
    head = ["", *map(str, classes)]
    return [head, *([str(row), *(str(counts[row, column] or "") for column in classes)] for row in classes)]


def _curves(folder: Path) -> Iterator[str]:
    """Charts of train.jsonl; nothing if the file is missing or damaged."""
    try:
        epochs = RunFolder(folder).epochs()
    except RobustCliError:
        return
    for title, unit, names in _CURVES:
        curves = {name: points for name in names if (points := list(_points(epochs, name)))}
        if curves:
            yield line_chart(title, curves, "epoch", unit)


def _points(epochs: Sequence[Record], name: str) -> Iterator[tuple[float, float]]:
    for record in epochs:
        value = record.robust if name == "robust" else record.measures.get(name)
        if isinstance(value, int | float):
            yield record.epoch + 1, 100 * value if name in _IN_PERCENT else value


def _lowest(results: Results) -> tuple[float, float] | None:
    """Clean and lowest robust accuracy in percent; None if one of them is not known."""
    key = results.key_of("robust")
    if key is None:
        return None
    clean = results.clean_accuracy(key)
    return None if clean is None else (100 * clean, 100 * results.evaluations[key].accuracy)


def _diagnostics(folder: Path) -> Iterator[str]:
    """Yield charts of results that `robust diagnose --out` stored: every curve of accuracies."""
    for path in sorted(folder.glob("*.json")):
        try:
            stored = read_json(path)
            diagnosed = stored.get("diagnostics") if isinstance(stored, dict) else None
            if isinstance(diagnosed, dict):
                norm, images = stored["threat"]["norm"], stored["examples"]
                charts = [chart for one in diagnosed.values() for chart in _accuracy_charts(one["found"], norm, images)]
                yield from charts
        # A file of another kind.
        except (RobustCliError, AttributeError, KeyError, TypeError, ValueError):
            continue


def _accuracy_charts(found: Any, norm: str, images: int) -> Iterator[str]:
    """Yield the chart of a diagnostic with a curve; diagnostics/__init__.py describes its form."""
    if not found.get("curve"):
        return
    rows = found["curve"]
    axis, *columns = rows[0]
    lines = {
        key: [(float(row[axis]), 100 * float(row[key])) for row in rows] for key in columns if key.endswith("accuracy")
    }
    if lines:
        title = f"Accuracy over {axis}, {images} images"
        yield line_chart(title, lines, f"eps in {norm}" if axis == "eps" else axis, "%")


def _examples(folder: Path) -> View:
    """Some stored adversarial examples, some images that survived, and a note if they cannot be shown."""
    if not keys_with_examples(folder):
        return {"examples": [], "survivors": [], "notes": []}
    try:
        found = stored_examples(folder, limit=_EXAMPLES)
    except RobustCliError as error:
        return {"examples": [], "survivors": [], "notes": [f"adversarial examples are not shown: {error}"]}
    names = found.classes
    examples = [
        {
            "image": int(found.indices[row]),
            "clean": data_url(found.x[row]),
            "difference": data_url(difference(found.x[row], found.x_adv[row])),
            "adversarial": data_url(found.x_adv[row]),
            "text": f"{names[found.labels[row]]} to {names[found.predictions[row]]}, {found.broken_by[row]}",
        }
        for row in range(len(found.indices))
    ]
    survivors = [
        {"image": one.index, "clean": data_url(one.x), "text": f"{names[one.label]}, margin {-one.margin:.3g}"}
        for one in found.survivors
    ]
    return {"examples": examples, "survivors": survivors, "notes": []}
