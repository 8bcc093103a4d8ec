"""The story of `robust export robustbench`: evidence -> claims -> folder -> the same evidence from the folder.

The folder has model_info/DATASET/THREAT/NAME.json (the card, where RobustBench keeps it), weights.pt, network.yaml,
model.py, log.txt, and result, ledger and witnesses of the evaluation.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli import __version__
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.per_image import read_ledger
from robustcli.evaluation.stored import Dossier
from robustcli.models.architecture import Architecture
from robustcli.models.model import ExternalModel, Model, TrainedModel, test_images
from robustcli.registry.registry import MemberSpec
from robustcli.runtime.device import choose_device
from robustcli.specs.check import to_plain
from robustcli.store.files import read_json, write_json
from robustcli.store.runs import RunFolder
from robustcli.workflows.export import rebuild
from robustcli.workflows.export.card import architecture_name, card, threat_name
from robustcli.workflows.export.claims import missing_for_autoattack, missing_images
from robustcli.workflows.export.metadata import dataset_of, read_metadata
from robustcli.workflows.export.recheck import recheck
from robustcli.workflows.export.record import log_text
from robustcli.workflows.verify import find_evidence


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `robust export robustbench` was asked for.

    Args:
        run: folder of a finished run, or of what `robust eval` stored.
        out: folder that is new or empty.
        evaluation: name of one of the run's.
        metadata: file with what no run knows.
        is_partial: whether accuracies that may not be claimed are left out instead of being an error.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they are not where they were.
        device: auto, cpu, cuda or cuda:i.
    """

    run: Path
    out: Path
    evaluation: str = "autoattack"
    metadata: Path | None = None
    is_partial: bool = False
    overrides: tuple[str, ...] = ()
    checkpoint: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        path: of the card.
        card: its keys.
        left_out: keys that it may not have, and why.
        checked: in words.
    """

    path: Path
    card: dict[str, Any]
    left_out: Mapping[str, Sequence[str]]
    checked: str


def export(request: Request) -> Exported:
    """Write the folder, and check it in a new process before it gets its name.

    Raises:
        RobustCliError: there is something already, the evidence is not there or not enough, or the folder does not
            give the network that was evaluated; nothing is left then.
    """
    _require_empty(request.out)
    metadata = read_metadata(request.metadata)
    subject, dossiers = find_evidence(request.run, request.overrides, request.checkpoint)
    if (request.run / "spec.yaml").is_file() and not RunFolder(request.run).is_finished:
        raise RobustCliError(f"{request.run}: is {RunFolder(request.run).status()}; finish it with --resume")
    results = read_json(request.run / "results.json")
    dossier = _dossier(dossiers, request.evaluation, results)
    result, lines = read_json(dossier.result), read_ledger(dossier.ledger)
    chosen = _architecture(subject, request.run)
    dataset, threat = dataset_of(subject.defaults.data.name, metadata), results["threat"]
    place = Path("model_info", dataset, threat_name(threat["norm"]), f"{metadata.card_name}.json")

    device = choose_device(request.device)
    data = test_images(subject.defaults, device)
    images = data.sizes["test"]
    missing = {
        "clean_acc": missing_images(dataset, result["total"], images),
        "autoattack_acc": missing_for_autoattack(
            result, threat=threat, dataset=dataset, images=images, classes=data.shape.classes, metadata=metadata
        ),
    }
    left_out = {key: reasons for key, reasons in missing.items() if reasons}
    if left_out and not request.is_partial:
        problems = "\n".join(f"  {key}: {reason}" for key, reasons in left_out.items() for reason in reasons)
        raise RobustCliError(
            f"{dossier.result}: is not what RobustBench asks for:\n{problems}\n--partial leaves such keys out"
        )
    if not lines:
        raise RobustCliError(f"{dossier.ledger}: has no images")
    contents = card(
        metadata,
        result,
        lines,
        threat=threat,
        dataset=dataset,
        architecture=architecture_name(chosen.name, to_plain(chosen.parameters)),
        left_out=tuple(left_out),
    )
    network = subject.load(data, device).network
    beside = request.out.with_name(request.out.name + ".writing")
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise RobustCliError(f"{beside}: cannot be made: {error.strerror}; delete it if an export left it") from error
    try:
        write_json(beside / place, contents)
        rebuild.keep(beside, network, chosen, data.shape)
        (beside / "model.py").write_text(_loader(data.shape.words, contents), encoding="utf-8")
        for path in (dossier.result, dossier.ledger, dossier.witnesses):
            if path.exists():
                shutil.copyfile(path, beside / path.name)
        checked = recheck(beside, dossier.key, request.run, request.overrides, request.checkpoint, request.device)
        words = f"{dataset}, read by {subject.defaults.data.name}"
        log = log_text(dossier.key, result, results, _sessions(request.run, results), left_out, images=words)
        (beside / "log.txt").write_text(f"{log}\nchecked in a new process: {checked}\n", encoding="utf-8")
        if request.out.exists():
            request.out.rmdir()
        beside.replace(request.out)
    except BaseException:
        shutil.rmtree(beside)
        raise
    return Exported(path=request.out / place, card=contents, left_out=left_out, checked=checked)


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "a folder that is not empty" if out.is_dir() else "a file"
        raise RobustCliError(f"{out}: is {what}; expected a new or an empty folder")


def _dossier(folder: Path, key: str, results: Mapping[str, Any]) -> Dossier:
    if key not in results["evaluations"]:
        raise RobustCliError(f"--evaluation: {folder} has none of name '{key}'{suggest(key, results['evaluations'])}")
    dossier = Dossier(folder, key)
    for path in (dossier.result, dossier.ledger):
        if not path.is_file():
            raise RobustCliError(f"{path}: no such file; what it held is needed to check the export")
    return dossier


def _architecture(subject: Model, run: Path) -> MemberSpec:
    """The registered architecture of what was evaluated."""
    if isinstance(subject, TrainedModel):
        return subject.spec.architecture
    if isinstance(subject, ExternalModel) and isinstance(subject.source, Architecture):
        return subject.source.chosen
    raise RobustCliError(
        f"{run}: {subject.defaults.name} brings code of its own, which an export cannot carry; expected a network of "
        "`robust train`, or weights with --architecture"
    )


def _sessions(run: Path, results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "provenance" in results:
        return [results["provenance"]]
    return list(read_json(RunFolder(run).provenance)["sessions"])


def _loader(shape: str, contents: Mapping[str, Any]) -> str:
    """The text of model.py."""
    return f'''"""{contents["architecture"]} on {contents["dataset"]}: build() gives the network.

It takes pixels in [0, 1], {shape}, as (n, c, h, w), normalises them itself, and returns logits
(n, k). It comes on the CPU and in eval mode.

The settings of the architecture are in network.yaml and the weights, a plain state dict with mean and std of the
normalisation, in weights.pt, both beside this file. The architecture's code is that of robustcli, of which this
folder was written by version {__version__}.
"""

from pathlib import Path

from torch import nn

from robustcli.workflows.export.rebuild import rebuild


def build() -> nn.Module:
    """The network, in eval mode."""
    return rebuild(Path(__file__).resolve().parent)
'''
