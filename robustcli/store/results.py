"""Typed results: one model for results.json of a run and one for what `robust eval` writes.

Every reader uses `read_results`; a file that is damaged or was written by another program gives one error with
the file, the key, what was found and what was expected.

In version 1 (the key `schema`) evaluations may lack keys, see `store.evaluations`. In version 2 they have all keys, and
`chain` binds everything in the folder. Files of version 1 are upgraded while they are read, and never rewritten.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from robustcli.errors import RobustCliError
from robustcli.store.evaluations import Evaluation, Threat, upgraded_evaluation
from robustcli.store.files import read_json, write_json
from robustcli.store.models import Stored, parsed, short
from robustcli.store.provenance import DataRecord, Session, read_provenance
from robustcli.store.search import run_folders

SCHEMA = 2
# Maximum number of folders in a message.
_LISTED = 10


class Selection(Stored):
    """How the weights of a run were chosen among its epochs.

    Args:
        by: measure, or "last".
        images: split on which it was measured; None for the last epoch.
    """

    by: str
    images: str | None


class Claim(Stored):
    """Published result that a run reproduces; see `specs.settings.Claim` for the keys."""

    source: str
    metrics: dict[str, float]
    table: str = ""
    tolerance: float = 0.01
    selection: str = ""
    hardware: str = ""
    note: str = ""


class ModelRequest(Stored):
    """Model and images as the user names them; None means not given.

    Args:
        text: a checkpoint, the folder of a run, a file of weights, a TorchScript file, or a name such as timm:NAME.
        overrides: dotted overrides of the spec in a checkpoint, or of architecture and data.
        architecture: registered name of the network that weights in a file belong to.
        model: "path/file.py:function" or "package.module:function".
        weights: a file for `model`, a file or a published name for a zoo.
        weights_key: key or prefix of the weights in their file.
        mean, std: normalization in front of an external model, "0.5" or one number for each channel.
        data: a data set's name, an .npz file or a folder of images.
        preprocess: registered name of a transformation of the images before the network.
    """

    text: str | None = None
    overrides: Annotated[tuple[str, ...], Field(strict=False)] = ()
    architecture: str | None = None
    model: str | None = None
    weights: str | None = None
    weights_key: str | None = None
    mean: str | None = None
    std: str | None = None
    data: str | None = None
    preprocess: str | None = None


class NetworkRecord(Stored):
    """Digest of the weights, and the normalization before the network (None: of each image)."""

    sha256: str
    mean: list[float] | None
    std: list[float] | None


class Chain(Stored):
    """Digest chain of results; see `store.chain`.

    Args:
        links: SHA-256 of every content, in the order of the chain.
        digest: digest of all links.
    """

    links: dict[str, str]
    digest: str


class _Results(Stored):
    schema_version: int = Field(default=SCHEMA, alias="schema")
    name: str
    spec_digest: str | None
    threat: Threat
    data: DataRecord
    evaluations: dict[str, Evaluation]
    chain: Chain | None = None

    @property
    def weights_digest(self) -> str | None:
        """Digest of the evaluated weights; None in a file that does not have it."""
        return None if self.chain is None else self.chain.links.get("weights")

    def key_of(self, name: str) -> str | None:
        """Evaluation of a name; `clean` and `robust` also mean the one without or with attacks that is lowest."""
        if name in self.evaluations:
            return name
        keys = [key for key, found in self.evaluations.items() if name == ("clean" if found.is_clean else "robust")]
        return min(keys, key=lambda key: self.evaluations[key].best_estimate, default=None)

    def clean_accuracy(self, key: str) -> float | None:
        """Clean accuracy on the images of an evaluation; None if unknown.

        Taken from the evaluation, or from the clean evaluation of the same network if it covers these images.
        """
        evaluation = self.evaluations[key]
        if evaluation.clean_correct is not None:
            return evaluation.clean_correct / evaluation.total
        for other in self.evaluations.values():
            if other.is_clean and other.total >= evaluation.total:
                return other.survivors[: evaluation.total].count("1") / evaluation.total
        return None


class RunResults(_Results):
    """results.json of a run.

    Args:
        status: finished, collapsed, or rewound to the epoch before a collapse.
        seed: of training.
        epoch: of the chosen weights, from 0; None if the weights are those of the start.
        collapsed_at: epoch in which robustness collapsed, from 0.
        precision: of the passes in training; None in files of earlier versions.
    """

    status: str
    seed: int
    selection: Selection
    epoch: int | None
    collapsed_at: int | None
    precision: str | None = None
    claim: Claim | None = None

    @property
    def training_seed(self) -> int:
        """Seed of training."""
        return self.seed

    @property
    def notes(self) -> list[str]:
        """None: everything about the conditions is in the spec."""
        return []

    def sessions(self, folder: Path) -> list[Session]:
        """Sessions of a run in a folder; none if its provenance.json is missing."""
        path = folder / "provenance.json"
        return read_provenance(path).sessions if path.is_file() else []


class EvalResults(_Results):
    """results.json of `robust eval`, and what its --out writes.

    Args:
        checkpoint: file name of the checkpoint of a run; None for other networks.
        training_seed: None for networks that `robust train` did not make.
        subject: the network and images, as the user named them.
        provenance: the process that evaluated it.
        notes: facts about these conditions that a reader must know.
    """

    checkpoint: str | None = None
    training_seed: int | None
    subject: ModelRequest
    network: NetworkRecord
    provenance: Session
    notes: list[str]

    @property
    def status(self) -> str:
        """Results are only written at the end."""
        return "finished"

    @property
    def claim(self) -> None:
        """None: claims are about runs."""
        return None

    def sessions(self, folder: Path) -> list[Session]:
        """The process that made these results."""
        return [self.provenance]


Results = RunResults | EvalResults


def only_results(path: Path) -> Path:
    """Return the folder with results that a path names: itself, or the only run or evaluation below it.

    Other paths are returned unchanged.

    Raises:
        RobustCliError: the folder holds several runs or evaluations.
    """
    if not path.is_dir() or any((path / name).is_file() for name in ("results.json", "spec.yaml")):
        return path
    found = [folder for folder in run_folders(path) if (folder / "results.json").is_file()]
    if len(found) > 1:
        shown = "".join(f"\n  {one}" for one in found[:_LISTED])
        rest = f"\n  and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise RobustCliError(f"{path}: holds {len(found)} finished runs or evaluations; name one of them:{shown}{rest}")
    return found[0] if found else path


def read_results(path: Path) -> Results:
    """Read results.json of a run or of `robust eval`.

    Raises:
        RobustCliError: the file is missing, damaged or of another kind; the message has the keys.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        raise RobustCliError(
            f"{path}: a zip archive; unpack it and name the folder, or use robust verify or robust diff"
        )
    raw = read_json(path)
    if not isinstance(raw, Mapping) or not {"evaluations", "data"} <= raw.keys():
        found = ", ".join(map(str, list(raw)[:5])) if isinstance(raw, Mapping) else short(raw)
        raise RobustCliError(
            f"{path}: not results of `robust train` or `robust eval`: found {found or 'no keys'}; expected the keys "
            "schema, data, evaluations, ..."
        )
    version = raw.get("schema")
    if version not in range(1, SCHEMA + 1):
        raise RobustCliError(f"{path}: schema: found {short(version)}; expected 1 to {SCHEMA}")
    kind: type[Results] = EvalResults if "subject" in raw else RunResults
    return parsed(kind, _upgraded(raw), path)


def read_run_results(path: Path) -> RunResults:
    """Read results.json of a run.

    Raises:
        RobustCliError: see `read_results`; or the results are those of `robust eval`.
    """
    results = read_results(path)
    if not isinstance(results, RunResults):
        raise RobustCliError(f"{path}: found results of `robust eval`; expected those of a run")
    return results


def write_results(path: Path, results: Results) -> None:
    """Write results.json atomically."""
    write_json(path, results.to_json())


def json_schema() -> dict[str, Any]:
    """JSON Schema of results.json."""
    return TypeAdapter(Results).json_schema(mode="serialization", by_alias=True)


def _upgraded(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert the content of a file of any version to the newest one."""
    evaluations = raw.get("evaluations")
    if raw.get("schema") == SCHEMA or not isinstance(evaluations, Mapping):
        return raw
    upgraded = {key: upgraded_evaluation(evaluation) for key, evaluation in evaluations.items()}
    return {**raw, "schema": SCHEMA, "evaluations": upgraded}
