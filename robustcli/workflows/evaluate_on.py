"""`robust eval --engine`: workers of an engine evaluate one network together."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from robustcli.errors import InUseError, RobustCliError
from robustcli.evaluation.watcher import Lines, Watcher, Watching
from robustcli.runtime.device import choose_device
from robustcli.store.results import EvalResults, read_results
from robustcli.store.runs import RunFolder, locked
from robustcli.workflows.engines import Answer, Engine, Needs, Task
from robustcli.workflows.evaluate import Request, case_of, require_sound


def assess_on(
    engine: Engine, needs: Needs, request: Request, watching: Watching, tell: Callable[[str], None]
) -> tuple[EvalResults, Path]:
    """Evaluate by workers of an engine, which draw shards of the images from a queue.

    Args:
        needs: GPUs and cores of each worker.
        watching: returns the watcher of a worker; called in its process.
        tell: called with a line about each result that an earlier process stored.

    Returns:
        The results and the folder of all files.

    Raises:
        RobustCliError: no worker could finish the evaluation.
    """
    if request.fresh:
        raise RobustCliError("--fresh: only with --engine local; remove the stored folder, or leave out --engine")
    require_sound(request)
    # Running the same command again finds its jobs by their folders.
    jobs = request.store / "jobs" / hashlib.sha256(repr(replace(request, quiet=False)).encode()).hexdigest()[:8]
    name = Path(request.subject.text or "evaluation").name
    tasks = [
        Task(
            name=f"eval-{name}-{number}",
            folder=jobs / str(number),
            work=work_on,
            arguments=(request, watching),
            **needs.on(request.device),
        )
        for number in range(request.workers)
    ]
    found, problems = [], []
    for _, answer in engine.run(tasks, _is_finished):
        if answer.error is None:
            found.append(answer.value)
        else:
            problems.append(answer.error)
    finished = [folder for folder, _ in found if RunFolder(folder).is_finished]
    if not finished:
        lines = dict.fromkeys([*problems] or ["the evaluation is not finished; run the same command again"])
        raise RobustCliError("\n".join(lines))
    for text in found[0][1] if all(lines for _, lines in found) else []:
        tell(text)
    results = read_results(RunFolder(finished[0]).results)
    assert isinstance(results, EvalResults)
    return results, finished[0]


def _is_finished(answer: Answer) -> bool:
    return answer.error is None and RunFolder(answer.value[0]).is_finished


def work_on(request: Request, watching: Watching) -> tuple[Path, list[str]]:
    """Work on an evaluation as one of several workers of an engine; the first one to finish stores it.

    Returns:
        The folder of all files, and lines about results that were stored before this worker started.
    """
    case = case_of(request, choose_device(request.device))
    if case.is_complete:
        return case.folder.path, list(case.stored())
    case.run_shards(Watcher() if request.quiet else Lines())
    # If another worker holds the lock, it stores the results.
    with suppress(InUseError), locked(case.folder.path), watching() as watcher:
        case.finish(watcher)
    return case.folder.path, []
