"""`robust export robustbench`: check the evaluation -> write the folder -> check the folder in a new process.

The folder has model_info/DATASET/THREAT/NAME.json (the card, where RobustBench keeps it), weights.pt, network.yaml,
model.py, log.txt, and result, per-image results and adversarial examples of the evaluation.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustcli import __version__
from robustcli.data.splits import Data
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.per_image import read_per_image
from robustcli.models.architecture import Architecture
from robustcli.models.model import ExternalModel, Model, TrainedModel, test_images
from robustcli.registry.registry import MemberSpec
from robustcli.runtime.device import choose_device
from robustcli.specs.check import to_plain
from robustcli.specs.yamlfile import to_yaml
from robustcli.store.evaluation_files import EvaluationFiles
from robustcli.store.evaluations import Evaluation, Threat, read_evaluation
from robustcli.store.files import require_empty, write_json
from robustcli.store.results import Results, read_results
from robustcli.store.runs import RunFolder
from robustcli.workflows.export import rebuild
from robustcli.workflows.export.card import architecture_name, card, threat_name
from robustcli.workflows.export.claims import missing_for_autoattack, missing_images
from robustcli.workflows.export.metadata import Metadata, dataset_of, read_metadata
from robustcli.workflows.export.recheck import recheck
from robustcli.workflows.verify import evaluated_model


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The written folder.

    Args:
        path: path of the card.
        card: its keys and values.
        left_out: omitted keys, with reasons.
        checked: list of the checks, as text.
    """

    path: Path
    card: dict[str, Any]
    left_out: Mapping[str, Sequence[str]]
    checked: str


def export(
    run: Path,
    out: Path,
    *,
    evaluation: str,
    metadata_file: Path | None,
    is_partial: bool,
    overrides: Sequence[str],
    checkpoint: str | None,
    device: str,
) -> Exported:
    """Write the folder, and check it in a new process before it gets its name.

    Args:
        run: folder of a finished run, or stored by `robust eval`.
        out: new or empty folder.
        evaluation: name of the evaluation.
        metadata_file: file with the facts that a run does not contain.
        is_partial: omit accuracies that do not qualify instead of raising an error.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they have moved.
        device: auto, cpu, cuda or cuda:i.

    Raises:
        RobustCliError: the folder is not empty, files are missing, the evaluation is not sufficient, or the folder
            does not rebuild the evaluated network; nothing is written then.
    """
    require_empty(out)
    if out.resolve() == Path.cwd():
        raise RobustCliError(f"{out}: is the current folder, which cannot be replaced; expected another new folder")
    metadata = read_metadata(metadata_file)
    subject = evaluated_model(run, overrides, checkpoint)
    if (run / "spec.yaml").is_file() and not RunFolder(run).is_finished:
        raise RobustCliError(f"{run}: is {RunFolder(run).status()}; finish it with --resume")
    results = read_results(RunFolder(run).results)
    files = _files(RunFolder(run), evaluation, results)
    result, lines = read_evaluation(files.result), read_per_image(files.per_image)
    chosen = _architecture(subject, run)
    dataset, threat = dataset_of(subject.defaults.data.name, metadata), results.threat
    place = Path("model_info", dataset, threat_name(threat.norm), f"{metadata.card_name}.json")

    chosen_device = choose_device(device)
    data = test_images(subject.defaults, chosen_device)
    left_out = _left_out(result, threat, dataset, data, metadata)
    if left_out and not is_partial:
        problems = "\n".join(f"  {key}: {reason}" for key, reasons in left_out.items() for reason in reasons)
        raise RobustCliError(
            f"{files.result}: does not meet RobustBench's conditions:\n{problems}\n--partial leaves these keys out"
        )
    if not lines:
        raise RobustCliError(f"{files.per_image}: has no images")
    contents = card(
        metadata,
        result,
        lines,
        threat=threat,
        dataset=dataset,
        architecture=architecture_name(chosen.name, to_plain(chosen.parameters)),
        left_out=tuple(left_out),
    )
    network = subject.load(data, chosen_device).network
    with _written_beside(out) as folder:
        write_json(folder / place, contents)
        rebuild.keep(folder, network, chosen, data.shape)
        (folder / "model.py").write_text(_loader(data.shape.text, contents), encoding="utf-8")
        for path in (files.result, files.per_image, files.adversarial_examples):
            if path.exists():
                shutil.copyfile(path, folder / path.name)
        checked = recheck(folder, files.key, run, overrides, checkpoint, device)
        images = f"{dataset}, read by {subject.defaults.data.name}: the first {result.total:,} of the test set"
        log = {
            **_record(results, files.key),
            "images": images,
            "sessions": [session.to_json() for session in results.sessions(run)],
            "left out of the card": left_out,
            "checked in a new process": checked,
        }
        (folder / "log.txt").write_text(to_yaml(log), encoding="utf-8")
    return Exported(path=out / place, card=contents, left_out=left_out, checked=checked)


def _left_out(result: Evaluation, threat: Threat, dataset: str, data: Data, metadata: Metadata) -> dict[str, list[str]]:
    """Return the keys for which an evaluation does not qualify, with reasons."""
    reasons = {
        "clean_acc": missing_images(dataset, result.total, data.sizes.test),
        "autoattack_acc": missing_for_autoattack(
            result,
            threat=threat,
            dataset=dataset,
            images=data.sizes.test,
            classes=data.shape.classes,
            metadata=metadata,
        ),
    }
    return {key: missing for key, missing in reasons.items() if missing}


@contextmanager
def _written_beside(out: Path) -> Iterator[Path]:
    """A new folder that is renamed to `out` at the end, or removed after an error."""
    folder = out.with_name(out.name + ".writing")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RobustCliError(
            f"{folder}: cannot be created: {error.strerror}; delete it if an export left it"
        ) from error
    try:
        yield folder
        if out.exists():
            out.rmdir()
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _record(results: Results, key: str) -> dict[str, Any]:
    """Return results.json with one evaluation, without its strings of one character per image."""
    found = results.to_json()
    evaluation = found["evaluations"][key]
    return {**found, "evaluations": {key: {k: v for k, v in evaluation.items() if k not in ("survivors", "sample")}}}


def _files(folder: RunFolder, key: str, results: Results) -> EvaluationFiles:
    if key not in results.evaluations:
        raise RobustCliError(
            f"--evaluation: {folder.evaluations} has no evaluation '{key}'{suggest(key, results.evaluations)}"
        )
    files = folder.evaluation(key)
    for path in (files.result, files.per_image):
        if not path.is_file():
            raise RobustCliError(f"{path}: no such file; it is needed to check the export")
    return files


def _architecture(subject: Model, run: Path) -> MemberSpec:
    """Registered architecture of the evaluated network, with the transformation of images before it."""
    if isinstance(subject, TrainedModel):
        chosen, preprocess = subject.spec.architecture, subject.preprocess
    elif isinstance(subject, ExternalModel) and isinstance(subject.source, Architecture):
        chosen, preprocess = subject.source.chosen, subject.preprocess
    else:
        raise RobustCliError(
            f"{run}: {subject.defaults.name} has its own code, which an export cannot contain; expected a network of "
            "`robust train`, or weights with --architecture"
        )
    if preprocess is None:
        return chosen
    return replace(chosen, options=replace(chosen.options, preprocess=preprocess))


def _loader(shape: str, contents: Mapping[str, Any]) -> str:
    """Text of model.py."""
    return f'''"""{contents.get("architecture")} on {contents.get("dataset")}: build() gives the network.

It takes pixels in [0, 1], {shape}, as (n, c, h, w), normalizes them itself, and returns logits
(n, k). It comes on the CPU and in eval mode.

The settings of the architecture are in network.yaml and the weights, a plain state dict with mean and std of the
normalization, in weights.pt, both next to this file. The architecture's code is that of robustcli, of which this
folder was written by version {__version__}.
"""

from pathlib import Path

from torch import nn

from robustcli.workflows.export.rebuild import rebuild


def build() -> nn.Module:
    """The network, in eval mode."""
    return rebuild(Path(__file__).resolve().parent)
'''
