"""The story of `robust eval`: subject -> data -> evaluations."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustcli.build import choose_device, describe_device, load_data
from robustcli.catalog import catalog
from robustcli.check import Checker, checked
from robustcli.dossier import Dossier, evaluate_into
from robustcli.errors import RobustCliError, suggest
from robustcli.fields import Family, exact_text
from robustcli.fingerprint import code_digest, weights_digest
from robustcli.memory import keep_freed_memory
from robustcli.naming import Wanted, find_subject
from robustcli.registry import Chosen, instantiate
from robustcli.runner import EvaluationWatcher
from robustcli.runs import SCHEMA, provenance, write_json
from robustcli.settings import EvaluateOptions, ThreatSettings
from robustcli.subject import Terms
from robustcli.threat import ThreatModel
from robustcli.yamlfile import parse_scalar


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `robust eval` was asked for; None is what the subject says.

    Args:
        subject: what is evaluated, and on which images.
        attack: an evaluator, an attack or a name under `evaluate`; None is everything under `evaluate`.
        options: settings of the attack or evaluator.
        eps, norm: the threat.
        examples: the first so many test images.
        seed: of the attack's noise.
        batch_size: images attacked at once.
        device: auto, cpu, cuda or cuda:i.
        store: folder of all evaluations.
        witnesses: whether to keep the adversarial images.
    """

    subject: Wanted
    attack: str | None = None
    options: Mapping[str, Any]
    eps: str | None = None
    norm: str | None = None
    examples: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    store: Path = Path("evals")
    witnesses: bool = False


def assess(request: Request, watcher: EvaluationWatcher) -> tuple[dict[str, Any], Path]:
    """Evaluate, and go on with what an earlier process began.

    Returns:
        The evaluations by name with what a reader must know of their conditions, and the folder of all files.
    """
    subject = find_subject(request.subject)
    spec = subject.terms
    chosen = _evaluations(request, spec)
    threat = _threat(request, spec, chosen)
    evaluators = {key: instantiate(choice) for key, choice in chosen.items()}
    device = choose_device(request.device)
    data = load_data(spec.data, device)
    keep_freed_memory()
    built = subject.build(data, device)
    network, notes = built.network, built.notes
    seed = spec.seed if request.seed is None else request.seed
    folder = _folder(request.store, spec.name, [weights_digest(network), data.digest, str(threat), seed, chosen])
    results = {}
    for key, choice in chosen.items():
        dossier = Dossier(folder, key)
        if not dossier.result.exists():
            watcher.evaluation(key, None)
        results[key] = evaluate_into(dossier, choice, evaluators[key], data, network, threat, seed)
        watcher.evaluation(key, results[key])
    found = {
        "schema": SCHEMA,
        **subject.origin,
        "network": built.to_json(),
        "threat": {"norm": threat.norm, "eps": exact_text(threat.eps)},
        "data": {"digest": data.digest, "sizes": data.sizes, "decode": data.decode},
        "provenance": provenance(describe_device(device)),
        "notes": notes,
        "evaluations": results,
    }
    write_json(folder / "results.json", found)
    return found, folder


def _folder(store: Path, name: str, parts: Sequence[Any]) -> Path:
    """Where an evaluation is kept: the same place for the same wish on the same weights and images."""
    digest = hashlib.sha256(repr([*map(repr, parts), code_digest()]).encode()).hexdigest()
    return store / f"{name}-{digest[:8]}"


def _threat(request: Request, spec: Terms, chosen: Mapping[str, Chosen]) -> ThreatModel:
    asked = {"norm": request.norm, "eps": None if request.eps is None else parse_scalar(request.eps)}
    given = {key: value for key, value in asked.items() if value is not None}
    known: dict[str, Any] = {} if spec.threat is None else {"norm": spec.threat.norm, "eps": spec.threat.eps}
    if not known and all(choice.name == "clean" for choice in chosen.values()):
        # Nothing is attacked, so nothing needs a threat.
        known = {"norm": "linf", "eps": 0}
    missing = [f"--{key}" for key in asked if key not in known and key not in given]
    if missing:
        raise RobustCliError(
            f"{' and '.join(missing)}: {spec.name} does not say what it is to resist; write --norm linf --eps 8/255, "
            "or what is usual for these images"
        )
    settings = checked(lambda checker: checker.settings(ThreatSettings, {**known, **given}, ("threat",)), "robust eval")
    return ThreatModel(settings.norm, Fraction(settings.eps))


def _evaluations(request: Request, spec: Terms) -> dict[str, Chosen]:
    """What to evaluate, by the name of its result."""
    if request.attack is None:
        if request.options:
            raise RobustCliError(f"--{next(iter(request.options)).replace('_', '-')} needs --attack")
        chosen = dict(spec.evaluate)
        if not chosen:
            raise RobustCliError("the spec inside the checkpoint names no evaluation; say which --attack")
    elif request.attack in spec.evaluate and not request.options:
        chosen = {request.attack: spec.evaluate[request.attack]}
    else:
        chosen = {request.attack: checked(lambda checker: _choose(checker, request), "robust eval")}
    asked = {"examples": request.examples, "witnesses": request.witnesses or None}
    given = {name: value for name, value in asked.items() if value is not None}
    chosen = {key: replace(choice, options=replace(choice.options, **given)) for key, choice in chosen.items()}
    if request.batch_size is not None:
        chosen = {key: _with_batch_size(choice, request.batch_size) for key, choice in chosen.items()}
    return chosen


def _choose(checker: Checker, request: Request) -> Any:
    assert request.attack is not None
    family = Family("evaluators", EvaluateOptions)
    options = {key: parse_scalar(value) if isinstance(value, str) else value for key, value in request.options.items()}
    if request.attack in catalog("evaluators"):
        return checker.chosen(family, {"name": request.attack, **options}, ("attack",))
    if request.attack not in catalog("attacks"):
        known = [*catalog("evaluators"), *catalog("attacks")]
        raise RobustCliError(
            f"--attack: there is no evaluator or attack '{request.attack}'{suggest(request.attack, known)}"
        )
    attack = {"name": request.attack, **options}
    if "keep" in catalog("attacks")[request.attack].parameters:
        # The evaluation's rule: any point that fools the model counts, not only the last one.
        attack["keep"] = "fooled"
    size = attack.get("step_size")
    if isinstance(size, float | int) and size > 1:
        raise RobustCliError(f"step_size: {size:g} is larger than the pixel range [0, 1]; write {size:g}/255")
    return checker.chosen(family, {"name": "attacked", "attack": attack}, ("attack",))


def _with_batch_size(choice: Chosen, batch_size: int) -> Chosen:
    """The same evaluator, and those inside it, with another batch size."""
    parameters = {
        key: [_with_batch_size(member, batch_size) for member in value]
        if isinstance(value, list) and all(isinstance(member, Chosen) for member in value)
        else value
        for key, value in choice.parameters.items()
    }
    if "batch_size" in parameters:
        parameters["batch_size"] = batch_size
    return replace(choice, parameters=parameters)
