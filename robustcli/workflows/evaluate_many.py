"""Several models under several attacks, each evaluated and stored as `robust eval` does one; transfer matrices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.evaluation.watcher import Watcher
from robustcli.models.architecture import Architecture
from robustcli.models.find import checkpoint_in, find_source, normalization_of
from robustcli.models.schemes import scheme_of
from robustcli.models.weights_fit import saved_normalization
from robustcli.store.results import EvalResults, ModelRequest
from robustcli.workflows.evaluate import Request, assess, require_sound


@dataclass(frozen=True)
class Cell:
    """One evaluation of a table.

    Args:
        model: the model as the user names it.
        attack: name of the attack; None for all evaluations of the model's spec.
        source: model that the examples are made on, in a transfer matrix.
        results: the results.
        folder: where they are stored.
    """

    model: str
    attack: str | None
    source: str | None
    results: EvalResults
    folder: Path

    @property
    def title(self) -> str:
        """The model, and the model that the examples are made on if it is another one."""
        return self.model if self.source in (None, self.model) else f"{self.model} on examples of {self.source}"


def assess_all(
    request: Request,
    models: Sequence[ModelRequest],
    attacks: Sequence[str],
    watcher: Watcher,
    tell: Callable[[str], None] = lambda text: None,
    *,
    transfer: bool = False,
) -> list[Cell]:
    """Evaluate every model under every attack, one after the other; stored results are read.

    Args:
        request: everything but the model and the attack.
        attacks: names; if empty, all evaluations of each model's spec.
        tell: called with the stored results of an earlier process.
        transfer: also evaluate each model on the examples made on every other model.

    Raises:
        RobustCliError: a model or an attack does not exist; raised before anything is attacked.
    """
    wanted = list(_requests(request, list(dict.fromkeys(models)), attacks, transfer=transfer))
    for one, _ in wanted:
        require_sound(one)
    cells = []
    for one, source in wanted:
        name = _name(one.subject)
        found = assess(one, watcher, partial(_with_name, tell, name))
        if found is not None:
            cells.append(Cell(name, one.attack, source, *found))
    return cells


def _with_name(tell: Callable[[str], None], name: str, text: str) -> None:
    tell(f"{name}: {text}")


def _requests(
    request: Request, models: Sequence[ModelRequest], attacks: Sequence[str], *, transfer: bool
) -> Iterator[tuple[Request, str | None]]:
    """Yield a request for every cell, and the model that its examples are made on."""
    if not transfer:
        for model in models:
            for attack in attacks or (None,):
                yield replace(request, subject=model, attack=attack), None
        return
    if len(models) < 2 or not attacks:
        raise RobustCliError(
            "--transfer: needs at least two models and --attack, such as M1 M2 --attack pgd --transfer"
        )
    if "source" in request.options:
        raise RobustCliError("--source: not with --transfer, which uses every model as the source once")
    for attack in attacks:
        for source in models:
            for model in models:
                options = {**request.options, **({} if source is model else _as_source(source))}
                yield replace(request, subject=model, attack=attack, options=options), _name(source)


def _as_source(model: ModelRequest) -> dict[str, Any]:
    """Return the settings of `transfer_attack` for examples that are made on a model."""
    text = model.text or ""
    if model.architecture is None:
        return {"source": text if scheme_of(text) is not None else str(checkpoint_in(Path(text)))}
    prefix = "architecture."
    settings = [override.removeprefix(prefix) for override in model.overrides if override.startswith(prefix)]
    mean, std = normalization_of(model)
    found = find_source(model)
    is_known = mean is not None or "normalize=none" in settings
    # When examples are made for another network, no labels tell which normalization suits.
    if not is_known and isinstance(found, Architecture) and saved_normalization(found.weights) is None:
        raise RobustCliError(
            f"--transfer: nothing says which normalization {text} was trained with; give --mean and --std (0 and 1 "
            "mean none)"
        )
    values = {} if mean is None or std is None else {"mean": list(mean), "std": list(std)}
    return {"source": text, "architecture": " ".join([model.architecture, *settings]), **values}


def _name(model: ModelRequest) -> str:
    return model.text or model.model or ""
