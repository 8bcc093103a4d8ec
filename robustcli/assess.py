"""The story of `robust eval`: subject -> data -> evaluations."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from robustcli.build import choose_device, describe_device, load_data
from robustcli.catalog import catalog
from robustcli.check import Checker, checked
from robustcli.data import Data
from robustcli.dossier import Dossier, evaluate_into
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluators import Evaluator
from robustcli.fields import Family, exact_text
from robustcli.fingerprint import code_digest, network_digest, weights_digest
from robustcli.memory import keep_freed_memory
from robustcli.naming import Wanted, find_subject
from robustcli.registry import Chosen, instantiate
from robustcli.runner import EvaluationWatcher
from robustcli.runs import SCHEMA, provenance, write_json
from robustcli.settings import EvaluateOptions, ThreatSettings
from robustcli.subject import Built, Subject, Terms
from robustcli.threat import ThreatModel
from robustcli.workers import Share, device_of, in_processes, share_of_torchrun, wait_for_torchrun
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
        workers: processes at once.
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
    workers: int = 1


def assess(request: Request, watcher: EvaluationWatcher) -> tuple[dict[str, Any], Path] | None:
    """Evaluate, alone or with others, and go on with what an earlier process began.

    Returns:
        The evaluations by name with what a reader must know of their conditions, and the folder of all files; None
        in a process of torchrun that is not the first, and has done its share.
    """
    share = share_of_torchrun()
    if share is not None:
        assess_share(request, share)
        wait_for_torchrun()
        if share[0]:
            return None
    elif request.workers > 1:
        in_processes(assess_share, request, request.workers)
    device = choose_device(request.device)
    case = _case(request, device)
    results = {}
    for key, choice in case.chosen.items():
        dossier = Dossier(case.folder, key)
        if not dossier.result.exists():
            watcher.evaluation(key, None)
        results[key] = evaluate_into(
            dossier,
            choice,
            case.evaluators[key],
            case.data,
            case.built.network,
            case.threat,
            case.seed,
            expected_clean=case.built.clean,
        )
        watcher.evaluation(key, results[key])
    found = {
        "schema": SCHEMA,
        **case.subject.origin,
        "subject": asdict(request.subject),
        "network": case.built.to_json(),
        "threat": {"norm": case.threat.norm, "eps": exact_text(case.threat.eps)},
        "data": {"digest": case.data.digest, "sizes": case.data.sizes, "decode": case.data.decode},
        "provenance": provenance(describe_device(device)),
        "notes": case.built.notes,
        "evaluations": results,
    }
    write_json(case.folder / "results.json", found)
    return found, case.folder


def assess_share(request: Request, share: Share) -> None:
    """One share of the attacks of a request; what they find goes to the journals."""
    case = _case(request, choose_device(device_of(share, request.device)))
    for key, choice in case.chosen.items():
        evaluate_into(
            Dossier(case.folder, key),
            choice,
            case.evaluators[key],
            case.data,
            case.built.network,
            case.threat,
            case.seed,
            share=share,
        )


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A request, made out: everything that an evaluation takes."""

    subject: Subject
    built: Built
    chosen: dict[str, Chosen]
    evaluators: dict[str, Evaluator]
    data: Data
    threat: ThreatModel
    seed: int
    folder: Path


def _case(request: Request, device: torch.device) -> _Case:
    subject = find_subject(request.subject)
    terms = subject.terms
    chosen = _evaluations(request, terms)
    is_attacked = any(choice.name != "clean" for choice in chosen.values())
    threat = threat_of(terms, request.norm, request.eps, is_attacked=is_attacked)
    evaluators = {key: instantiate(choice) for key, choice in chosen.items()}
    data = load_data(terms.data, device)
    keep_freed_memory()
    built = subject.build(data, device)
    seed = terms.seed if request.seed is None else request.seed
    network = built.network
    digest = [weights_digest(network), network_digest(network), data.digest, str(threat), seed, chosen]
    return _Case(
        subject=subject,
        built=built,
        chosen=chosen,
        evaluators=evaluators,
        data=data,
        threat=threat,
        seed=seed,
        folder=_folder(request.store, terms.name, digest),
    )


def _folder(store: Path, name: str, parts: Sequence[Any]) -> Path:
    """Where an evaluation is kept: the same place for the same wish on the same network and images.

    Args:
        name: of the network; of one that is named by a path, what the path ends with: the store holds them all.
    """
    digest = hashlib.sha256(repr([*map(repr, parts), code_digest()]).encode()).hexdigest()
    return store / f"{Path(name).name}-{digest[:8]}"


def threat_of(
    terms: Terms, norm: str | None, eps: str | None, *, is_attacked: bool = True, where: str = "robust eval"
) -> ThreatModel:
    """The threat of the subject, as far as the user does not say another.

    Args:
        is_attacked: whether anything needs a threat; otherwise one of radius 0 will do.
        where: the command, for messages.
    """
    asked = {"norm": norm, "eps": None if eps is None else parse_scalar(eps)}
    given = {key: value for key, value in asked.items() if value is not None}
    known: dict[str, Any] = {} if terms.threat is None else {"norm": terms.threat.norm, "eps": terms.threat.eps}
    if not known and not is_attacked:
        known = {"norm": "linf", "eps": 0}
    missing = [f"--{key}" for key in asked if key not in known and key not in given]
    if missing:
        raise RobustCliError(
            f"{' and '.join(missing)}: {terms.name} does not say what it is to resist; write --norm linf --eps 8/255, "
            "or what is usual for these images"
        )
    settings = checked(lambda checker: checker.settings(ThreatSettings, {**known, **given}, ("threat",)), where)
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
