"""Evaluations of several models under several attacks as tables."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from robustcli.evaluation.wording import interval, percent, threats_of
from robustcli.reports.tables import plain_table
from robustcli.store.evaluations import Evaluation
from robustcli.workflows.compare import compare, have_same_threat
from robustcli.workflows.evaluate_many import Cell


def model_table(cells: Sequence[Cell]) -> Table:
    """One row per model with its clean accuracy, and one column per attack."""
    found: dict[str, dict[str, Evaluation]] = {}
    clean: dict[str, str] = {}
    for cell in cells:
        for key, evaluation in cell.results.evaluations.items():
            accuracy = cell.results.clean_accuracy(key)
            if accuracy is not None:
                clean.setdefault(cell.model, percent(accuracy))
            if not evaluation.is_clean:
                found.setdefault(cell.model, {})[key] = evaluation
            found.setdefault(cell.model, {})
    keys = list(dict.fromkeys(key for evaluations in found.values() for key in evaluations))
    table = plain_table(("model", "threat", "clean %", *(f"{key} %" for key in keys)), text=("model", "threat"))
    for model, evaluations in found.items():
        threats = ", ".join(dict.fromkeys(threats_of(evaluation) for evaluation in evaluations.values()))
        shown = [_shown(evaluations[key]) if key in evaluations else "" for key in keys]
        table.add_row(model, threats, clean.get(model, ""), *shown)
    return table


def transfer_tables(cells: Sequence[Cell]) -> Iterator[Table]:
    """One table per attack: accuracy of every model (columns) on the examples made on every model (rows)."""
    for attack in dict.fromkeys(cell.attack for cell in cells):
        own = [cell for cell in cells if cell.attack == attack]
        models = list(dict.fromkeys(cell.model for cell in own))
        names = [f"{number} {model}" for number, model in enumerate(models, 1)]
        title = f"{attack}: robust % of each model on examples made on the model of the row"
        columns = ("made on", *(str(number) for number in range(1, len(models) + 1)))
        table = plain_table(columns, text=("made on",), title=title)
        by_place = {(cell.source, cell.model): next(iter(cell.results.evaluations.values())) for cell in own}
        for source, name in zip(models, names, strict=True):
            table.add_row(name, *(_shown(by_place[source, model]) for model in models))
        yield table


def cost_lines(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the average cost of every attack per attacked image."""
    for cell in cells:
        for key, found in cell.results.evaluations.items():
            attacked = found.stages[0].entered if found.stages else 0
            if attacked:
                forwards, gradients = (
                    sum(stage.forwards for stage in found.stages) / attacked,
                    sum(stage.gradients for stage in found.stages) / attacked,
                )
                steps = "".join(f"{name} {count}, " for name, count in _lengths(found))
                yield (
                    f"{cell.title}, {key}: {steps}{forwards:,.0f} forwards and {gradients:,.0f} gradients per image "
                    "on average"
                )


def paired_lines(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what can be claimed about the attacks on each model: the first compared with each other one, by image."""
    of_model: dict[str, list[tuple[str, Cell]]] = {}
    for cell in cells:
        for key, found in cell.results.evaluations.items():
            if not found.is_clean:
                of_model.setdefault(cell.model, []).append((key, cell))
    for model, ((key, first), *others) in of_model.items():
        for other_key, other in others:
            if not have_same_threat(first.results.evaluations[key], other.results.evaluations[other_key]):
                yield f"{model}: {key} and {other_key} are not compared, because their threat models differ"
                continue
            (pair,) = compare(first.folder, other.folder, [f"{key}:{other_key}"]).values()
            yield f"{model}: {pair.claim(key, other_key)}"


def _lengths(found: Evaluation) -> Iterator[tuple[str, int]]:
    attack = found.parameters.get("attack")
    if isinstance(attack, dict):
        yield from ((name, attack[name]) for name in ("steps", "queries", "restarts") if name in attack)


def _shown(evaluation: Evaluation) -> str:
    return f"{interval(evaluation)}{' SUSPECT' if evaluation.verdict == 'SUSPECT' else ''}"
