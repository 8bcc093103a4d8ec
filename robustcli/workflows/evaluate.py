"""`robust eval`: find the network -> read the images -> run the evaluations -> store the results."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from robustcli.errors import RobustCliError
from robustcli.evaluation.attack_choice import evaluator_of, with_batch_size
from robustcli.evaluation.behavior import Behavior, behavior_of, is_same, read_behavior, write_behavior
from robustcli.evaluation.fingerprint import code_digest, evaluator_text, files_digest
from robustcli.evaluation.restore import settled
from robustcli.evaluation.stored import Task, plain_parameters
from robustcli.evaluation.watcher import Lines, Watcher
from robustcli.evaluation.workers import device_of, in_processes, require_processors
from robustcli.models.digest import imported_code_digest, network_digest, weights_digest
from robustcli.models.find import find_model
from robustcli.models.model import EvaluationDefaults
from robustcli.models.open import OpenedModel, open_model, threat_of
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.runtime import ranks
from robustcli.runtime.device import choose_device
from robustcli.runtime.process_group import joined
from robustcli.runtime.ranks import Share, share_of_torchrun
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.chain import RESULTS, chained
from robustcli.store.files import own_mark
from robustcli.store.results import SCHEMA, EvalResults, ModelRequest, read_results, write_results
from robustcli.store.runs import LOCK, RunFolder, locked
from robustcli.workflows.budget import Budget, attack_with_length, within_budget

# Number of clean images for comparing a network with the one of a stored result.
_COMPARED = 16
# Their outputs.
_BEHAVIOR = "behavior.npz"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request of `robust eval`; None means the value that comes with the network.

    Args:
        subject: the network and the images.
        attack: an evaluator, an attack or a name under `evaluate`; None means everything under `evaluate`.
        options: settings of the attack or evaluator.
        eps, norm: threat model.
        examples: use the first N test images.
        seed: seed of the attack's noise.
        batch_size: images attacked at once.
        device: auto, cpu, cuda or cuda:i.
        store: folder of all evaluations.
        save_examples: keep the adversarial images.
        workers: number of processes.
        fresh: whether to recompute stored results.
        budget: maximum passes per image for every attack; it sets the steps.
        quiet: whether progress is not printed.
    """

    subject: ModelRequest
    attack: str | None = None
    options: Mapping[str, Any]
    eps: str | None = None
    norm: str | None = None
    examples: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    store: Path = Path("evals")
    save_examples: bool = False
    workers: int = 1
    fresh: bool = False
    budget: Budget | None = None
    quiet: bool = False


def assess(
    request: Request, watcher: Watcher, tell: Callable[[str], None] = lambda text: None
) -> tuple[EvalResults, Path] | None:
    """Evaluate in this process or in several, and resume unfinished evaluations.

    Args:
        tell: called with a line about each result that an earlier process stored.

    Returns:
        The results and the folder of all files; None in every process of torchrun but the first.
    """
    share = share_of_torchrun()
    with joined():
        return _assess(request, watcher, tell, share)


def _assess(
    request: Request, watcher: Watcher, tell: Callable[[str], None], share: Share | None
) -> tuple[EvalResults, Path] | None:
    if share is not None and share[0]:
        if request.fresh:
            ranks.wait()  # until the first process has removed stored results
        assess_share(request, share)
        ranks.wait()
        return None
    device = choose_device(request.device if share is None else device_of(share, request.device))
    is_new = not request.store.exists()
    case = case_of(request, device)
    if case.is_complete and share is None and not request.fresh:
        # Without a lock, because the folder may be read-only.
        for text in case.stored():
            tell(text)
        return case.finish(watcher), case.folder.path
    if share is None:
        require_processors("--workers", request.workers, device.type)
    # The first of several processes locks the folder for all of them.
    with locked(case.folder.path), case.abandoned_on_error(request.store if is_new else None):
        if request.fresh:
            case.forget()
            ranks.wait()
        for text in case.stored():
            tell(text)
        if share is not None:
            case.run_shards(watcher)
            ranks.wait()
        elif request.workers > 1 and not case.folder.is_finished:
            in_processes(assess_share, request, request.workers)
        return case.finish(watcher), case.folder.path


def require_sound(request: Request) -> None:
    """Check a request as far as this is possible without images.

    Raises:
        RobustCliError: the model or the attack does not exist, or a setting is wrong.
    """
    chosen = _evaluations(request, find_model(request.subject).defaults)
    if request.budget is not None:
        for key, choice in chosen.items():
            if not choice.member.without_attack:
                attack_with_length(choice, key)


def assess_share(request: Request, share: Share) -> None:
    """Attack shards of the images as one of several processes; the outcomes go to the journals."""
    # The first process prints the progress of all.
    watcher = Watcher() if request.quiet or share[0] else Lines()
    case_of(request, choose_device(device_of(share, request.device))).run_shards(watcher)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A checked request: everything that an evaluation needs.

    Args:
        tasks: evaluations to run, by the name of the result.
    """

    opened: OpenedModel
    tasks: dict[str, Task]
    folder: RunFolder

    def forget(self) -> None:
        """Remove the stored files of these evaluations."""
        self.folder.results.unlink(missing_ok=True)
        for task in self.tasks.values():
            files = task.files
            for path in (files.result, files.per_image, files.adversarial_examples):
                path.unlink(missing_ok=True)
            if files.journal.exists():
                shutil.rmtree(files.journal)

    @contextmanager
    def abandoned_on_error(self, store: Path | None) -> Iterator[None]:
        """Remove the folder after an error if nothing was computed, so that a refused evaluation leaves no files.

        Args:
            store: the folder around it if it did not exist before.
        """
        try:
            yield
        except BaseException:
            with suppress(OSError):
                if {path.name for path in self.folder.path.iterdir()} <= {_BEHAVIOR, LOCK}:
                    shutil.rmtree(self.folder.path)
                    if store is not None:
                        store.rmdir()
            raise

    @property
    def is_complete(self) -> bool:
        """True if every evaluation and the results are stored."""
        return self.folder.is_finished and all(task.files.result.exists() for task in self.tasks.values())

    def stored(self) -> Iterator[str]:
        """A line about each evaluation that an earlier process has done."""
        for key, task in self.tasks.items():
            path = task.files.result
            if path.exists():
                date = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(" ", "minutes")
                yield f"{key}: stored result of {date}, {self.folder.path}; --fresh computes it again"
        stored = read_results(self.folder.results) if self.is_complete else None
        if isinstance(stored, EvalResults):
            yield from self._of_these_files(stored)

    def _of_these_files(self, stored: EvalResults) -> Iterator[str]:
        """A line if the stored result is from another file with the same weights, and the notes on this file."""
        then, now = (one.weights or one.text for one in (stored.subject, self.opened.request))
        if then != now and stored.notes != list(self.opened.loaded.notes):
            yield f"note: the stored result and its notes are about {then}, which has the same weights as {now}"
        yield from (f"note: {text}" for text in self.opened.loaded.notes if text not in stored.notes)

    def run_shards(self, watcher: Watcher) -> None:
        """Attack shards of the images as one of several processes, only for the journals."""
        for key, task in self.tasks.items():
            if not task.chosen.member.without_attack:
                task.run_shards(partial(watcher.attack, key))

    def finish(self, watcher: Watcher) -> EvalResults:
        """Run or read all evaluations and write the results; complete results are read, and never written again."""
        is_complete = self.is_complete
        evaluations = {}
        for key, task in self.tasks.items():
            if not task.files.result.exists():
                watcher.evaluation(key, None)
            evaluations[key] = task.run(partial(watcher.attack, key))
            watcher.evaluation(key, evaluations[key])
        if is_complete:
            stored = read_results(self.folder.results)
            if isinstance(stored, EvalResults):
                return stored
        results = EvalResults.model_validate({**self.opened.to_json(), "schema": SCHEMA, "evaluations": evaluations})
        results = chained(self.folder.path, results, weights_digest(self.opened.loaded.network))
        write_results(self.folder.results, results)
        return results


def case_of(request: Request, device: torch.device) -> Case:
    subject = find_model(request.subject)
    defaults = subject.defaults
    chosen = _evaluations(request, defaults)
    members = [choice.member for choice in chosen.values()]
    is_attacked = not all(member.without_attack or member.without_threat for member in members)
    threat = threat_of(defaults, request.norm, request.eps, is_attacked=is_attacked)
    evaluators = {key: instantiate(choice) for key, choice in chosen.items()}
    case = open_model(request.subject, subject, threat, device)
    if request.budget is not None:
        with settled(case.loaded.network, device.type):
            chosen = {key: within_budget(choice, request.budget, case) for key, choice in chosen.items()}
        evaluators = {key: instantiate(choice) for key, choice in chosen.items()}
    seed = defaults.seed if request.seed is None else request.seed
    network = case.loaded.network
    files = [files_digest(evaluator.files) for evaluator in evaluators.values()]
    # Without the batch size, as in the fingerprint, so that another batch size resumes the same evaluation.
    settings = {
        key: (evaluator_text(choice.name, plain_parameters(choice)), choice.options) for key, choice in chosen.items()
    }
    digest = [weights_digest(network), network_digest(network), case.data.digest, str(threat), seed, settings, files]
    if request.subject.model is not None:
        digest.append(imported_code_digest())
    x, y = case.data.evaluation("test", min(_COMPARED, case.data.sizes.test))
    folder = RunFolder(_folder(request.store, defaults.name, digest, behavior_of(network, x, y)))
    tasks = {
        key: Task(
            files=folder.evaluation(key),
            chosen=choice,
            evaluator=evaluators[key],
            data=case.data,
            network=network,
            threat=case.threat,
            seed=seed,
            expected_clean=case.loaded.clean,
        )
        for key, choice in chosen.items()
    }
    return Case(opened=case, tasks=tasks, folder=folder)


def _folder(store: Path, name: str, parts: Sequence[Any], behavior: Behavior) -> Path:
    """Return the folder of an evaluation, which is the same for the same request, network and images.

    The behavior of a network may depend on more than its weights and code, such as the environment. So its behavior is
    stored in the folder, and a network with another behavior gets the next folder.

    Args:
        name: name of the network; for a path, its last part.
    """
    digest = hashlib.sha256(repr([*map(repr, parts), code_digest()]).encode()).hexdigest()
    folder = store / f"{Path(name).name}-{digest[:8]}"
    for number in count(2):
        known = folder / _BEHAVIOR
        # The owner of these results is unknown.
        is_foreign = not known.exists() and (folder / RESULTS).exists()
        if not known.exists() and not is_foreign:
            write_behavior(known, behavior, own_mark())
        if not is_foreign and is_same(read_behavior(known), behavior):
            return folder
        folder = store / f"{Path(name).name}-{digest[:8]}-{number}"
    raise AssertionError("there is always a next number")


def _evaluations(request: Request, spec: EvaluationDefaults) -> dict[str, MemberSpec]:
    """Evaluators to run, by the name of the result."""
    if request.attack is None:
        if request.options:
            raise RobustCliError(f"--{next(iter(request.options)).replace('_', '-')} needs --attack")
        chosen = dict(spec.evaluate)
        if not chosen:
            raise RobustCliError("the spec in the checkpoint has no evaluation; pass --attack")
    elif request.attack in spec.evaluate and not request.options:
        chosen = {request.attack: spec.evaluate[request.attack]}
    else:
        options = {
            key: parse_scalar(value) if isinstance(value, str) else value for key, value in request.options.items()
        }
        chosen = {request.attack: evaluator_of(request.attack, options)}
    asked = {"examples": request.examples, "save_examples": request.save_examples or None}
    given = {name: value for name, value in asked.items() if value is not None}
    chosen = {key: replace(choice, options=replace(choice.options, **given)) for key, choice in chosen.items()}
    if request.batch_size is not None:
        chosen = {key: with_batch_size(choice, request.batch_size) for key, choice in chosen.items()}
    return chosen
