"""`robust verify`: recompute stored accuracies from weights, images and adversarial examples, without attacking."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcli.data.splits import Data
from robustcli.errors import RobustCliError
from robustcli.evaluation.consistency import check_counts, check_derived
from robustcli.evaluation.per_image import read_per_image
from robustcli.models.digest import weights_digest
from robustcli.models.find import find_model
from robustcli.models.model import LoadedModel, Model, test_images
from robustcli.models.schemes import scheme_of
from robustcli.runtime.device import choose_device
from robustcli.store.chain import RESULTS
from robustcli.store.evaluation_files import EvaluationFiles
from robustcli.store.evaluations import parse_evaluation, upgraded_evaluation
from robustcli.store.files import read_json
from robustcli.store.results import Chain, EvalResults, ModelRequest, Results, RunResults, read_results
from robustcli.store.runs import RunFolder
from robustcli.workflows.verify_evaluation import Finding, verify
from robustcli.workflows.verify_results import of_chain, of_data, of_eval, of_provenance, of_run


def verify_folder(
    folder: Path,
    overrides: Sequence[str],
    checkpoint: str | None,
    device: str,
    begins: Callable[[str], None] = lambda part: None,
) -> list[Finding]:
    """Check every evaluation of a run, or of `robust eval`, and results.json with its digest chain.

    Args:
        folder: folder of a run, or stored by `robust eval`.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they have moved.
        device: auto, cpu, cuda or cuda:i.
        begins: is called with each part before it is checked.

    Raises:
        RobustCliError: there is no evaluation to check, or its network or its images cannot be read.
    """
    files = RunFolder(folder.parent if folder.name == RESULTS and folder.is_file() else folder)
    # results.json is checked too, because users and other commands read it.
    results = read_results(files.results) if files.is_finished else None
    stated = read_json(files.results) if files.is_finished else {}
    if isinstance(results, RunResults) and checkpoint is None and not files.best.is_file():
        return list(_of_numbers(files, results, stated))
    model = evaluated_model(files.path, overrides, checkpoint)
    keys = sorted({path.stem for kind in ("*.csv", "*.json") for path in files.evaluations.glob(kind)})
    keys = list(dict.fromkeys((*keys, *(results.evaluations if results else ()))))
    if not keys:
        raise RobustCliError(
            f"{files.evaluations}: found no results and no per-image results (*.csv); nothing to check"
        )
    data = test_images(model.defaults, choose_device(device))
    loaded = model.load(data, choose_device(device))
    known = {key: _stored(files.evaluation(key), stated) for key in keys}
    totals = {key: parse_evaluation(raw, files.evaluation(key).result).total for key, raw in known.items()}
    x, y = data.images("test", min(max(totals.values()), data.sizes.test))
    findings = []
    for key in keys:
        begins(f"{key}, {totals[key]} images")
        own = files.evaluation(key)
        finding = verify(own, loaded.network, x, y, known[key])
        if results is not None and upgraded_evaluation(stated["evaluations"].get(key)) != upgraded_evaluation(
            known[key]
        ):
            finding.problems.append(f"results.json: differs from {own.result.name}")
        findings.append(finding)
    if results is None:
        return [*findings, Finding(RESULTS, [], "", ["status, settings and digest chain: the run is not finished"])]
    return [*findings, _of_results(files, results, stated, model, loaded, data)]


def _stored(files: EvaluationFiles, stated: Mapping[str, Any]) -> Any:
    """Content of an evaluation's own file, or of its part of results.json where only that was kept."""
    return read_json(files.result) if files.folder.is_dir() else stated["evaluations"][files.key]


def _of_numbers(files: RunFolder, results: RunResults, stated: Mapping[str, Any]) -> Iterator[Finding]:
    """Check results without their weights: only that the numbers of every evaluation are consistent."""
    for key, result in results.evaluations.items():
        problems = list(check_derived(result, stated["evaluations"][key]))
        lines = files.evaluation(key).per_image
        if lines.is_file():
            problems += check_counts(result, read_per_image(lines))
        unchecked = ["weights, images, predictions and attacks"]
        yield Finding(key, problems, "counts, accuracy and interval", unchecked, is_recomputed=False)
    problems = list(of_provenance(files, results))
    unchecked = []
    if results.chain is not None and files.spec.is_file():
        # Without the weights, only the rest can be compared.
        broken, unchecked = of_chain(files, results, stated, results.chain.links.get("weights", ""))
        problems += broken
    where = files.best.relative_to(files.path)
    unchecked.append(f"what follows from the weights and the images: there is no {where}; --checkpoint names it")
    yield Finding(RESULTS, problems, "record of the data", unchecked)


def _of_results(
    files: RunFolder, results: Results, stated: Mapping[str, Any], model: Model, loaded: LoadedModel, data: Data
) -> Finding:
    """Check results.json itself: the digest chain, and everything that follows from the other files."""
    problems, unchecked = of_chain(files, results, stated, weights_digest(loaded.network))
    if data.is_whole or (isinstance(results, EvalResults) and results.chain is not None):
        problems += of_data(results, data)
    else:
        unchecked.append("data: digest of the training images, which are not read here")
    if isinstance(results, EvalResults):
        problems += of_eval(results, stated, model, loaded)
        unchecked.append("subject and provenance: how the user named the network, and the session")
    elif files.spec.is_file():
        problems += of_run(files, results, model)
        if not files.last.is_file():
            unchecked.append(f"status, collapsed_at and precision: there is no {files.last.relative_to(files.path)}")
    words = "settings, status, data and digest chain" if results.chain else "settings, status and data"
    return Finding(RESULTS, problems, words, unchecked)


def chain_in(folder: Path) -> Chain:
    """Digest chain of the results in a folder.

    Raises:
        RobustCliError: there is none, so nothing can be signed.
    """
    chain = read_results(RunFolder(folder).results).chain
    if chain is None:
        raise RobustCliError(f"{folder}: the results have no digest chain to sign; evaluate again to get one")
    return chain


def evaluated_model(folder: Path, overrides: Sequence[str], checkpoint: str | None) -> Model:
    """Return the model that the evaluations in a folder are about.

    Args:
        folder: folder of a run, or stored by `robust eval`.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they have moved.

    Raises:
        RobustCliError: it is neither, or the weights cannot be read.
    """
    files = RunFolder(folder)
    stored = read_results(files.results) if files.results.is_file() else None
    if files.spec.is_file():
        wanted = ModelRequest(text=str(files.best))
    elif isinstance(stored, EvalResults):
        wanted = stored.subject
    elif not folder.exists():
        raise RobustCliError(f"{folder}: no such file or folder; expected a run, an evaluation or a .zip file of one")
    else:
        raise RobustCliError(
            f"{folder}: found no spec.yaml and no results.json of `robust eval`; expected the folder of a run or of "
            "an evaluation"
        )
    text = checkpoint or wanted.text
    if text is not None and scheme_of(text) is None and not Path(text).exists():
        raise RobustCliError(
            f"{text}: no such file here, but {folder} is about it; run the command in the folder in which it was "
            "evaluated, or name the weights with robust verify --checkpoint"
        )
    moved = {"text": text, "overrides": (*wanted.overrides, *overrides)}
    return find_model(wanted.model_copy(update=moved))
