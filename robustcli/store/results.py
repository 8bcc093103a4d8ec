"""Typed results: one model for `results.json`, for a stored evaluation and for the provenance of a run.

Every reader goes through `read_results`, `read_evaluation` or `read_provenance`; a file that is damaged or was written
by another program gives one error with the file, the key, what was found and what was expected.

Versions of the files (the key `schema`):

1. Evaluations may lack `stages`, `suspicions` and `fingerprint`: the first ones were made before attacks were recorded
   one by one and before their failures were questioned. They get `suspicions: null` and have no verdict. AutoAttack
   without an `engine` was run by its authors' package.
2. Every evaluation in `results.json` has all keys. A stored evaluation (`evaluations/NAME.json`) is one of them and has
   no `schema` of its own. `chain` binds everything in the folder; version 1 has none.

Files of version 1 are upgraded while they are read, and never rewritten.
"""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, computed_field

from robustcli.errors import RobustCliError
from robustcli.registry.catalog import catalog
from robustcli.statistics import clopper_pearson
from robustcli.store.files import read_json, write_json
from robustcli.store.models import Count, Radius, Stored, parsed, short

SCHEMA = 2
Survivors = Annotated[str, StringConstraints(pattern="^[01]+$")]
Sample = Annotated[str, StringConstraints(pattern="^[012]+$")]


class Threat(Stored):
    """Norm and radius of a threat model, the radius as exact text such as "8/255"."""

    norm: str
    eps: Radius

    def __str__(self) -> str:
        return f"{self.norm} {self.eps}"


class StageResult(Stored):
    """One attack of an evaluation: images that entered, images that it broke, and its cost.

    Args:
        is_black_box: the stage used no gradients.
        sampled: images that were attacked, if they were only a sample; None means all that entered.
        has_black_box: a part of the stage used no gradients.
        is_search: the stage looked for the worst point; if not, it changed images by chance, as corruptions do.
        threat: the stage's own threat as text such as "l2 0.5"; None means that of the evaluation.
    """

    name: str
    is_black_box: bool
    entered: Count
    broken: Count
    forwards: Count
    gradients: Count
    seconds: float
    sampled: int | None = None
    has_black_box: bool = False
    is_search: bool = True
    threat: str | None = None


class Estimate(Stored):
    """Robust accuracy under attacks that ran on a sample of the survivors only, as a fraction of all images.

    Args:
        accuracy: unbiased estimate.
        low, high: exact 95 % interval, over the drawing of the sample from these images.
    """

    accuracy: float
    low: float
    high: float


class Evaluation(Stored):
    """Result of one evaluation: one character per image, and what a reader must know about it.

    Accuracy, interval and verdict are computed from `survivors`, `stages` and `suspicions`, whatever the file says;
    `contradictions` compares both.

    Args:
        evaluator: registered name of the evaluator.
        parameters: its settings, as the spec states them.
        norm, eps: of the threat model; eps is exact text such as "8/255".
        seed: of the evaluation's noise.
        survivors: one character per image, in the order of the data: "1" still correct, "0" not.
        forwards: images passed through the model.
        gradients: images for which a gradient through the logits was computed.
        seconds: wall-clock time of the evaluator, without the checks around it.
        stages: its attacks in their order.
        suspicions: signs that attacks failed for another reason than robustness; None without a check (version 1).
        warnings: what else a reader of the number must know, each once.
        fingerprint: digests of everything that the survivors depend on.
        sample: one character per image, if the last attacks ran on some images only: "1" if this image was drawn at
            random for them, "2" if it was one of those nearest to a wrong class, "0" if they did not run on it.
        estimate: accuracy if they had run on all images; None if they did.
    """

    evaluator: str
    parameters: dict[str, Any]
    norm: str
    eps: Radius
    seed: int
    survivors: Survivors
    forwards: Count
    gradients: Count
    seconds: float
    stages: list[StageResult] = Field(default_factory=list)
    suspicions: list[str] | None = None
    warnings: list[str]
    fingerprint: dict[str, str] | None = None
    sample: Sample | None = None
    estimate: Estimate | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def eps_value(self) -> float:
        """Radius as a float."""
        return float(Fraction(self.eps))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def correct(self) -> int:
        """Number of images that survived."""
        return self.survivors.count("1")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """Number of images evaluated, including those that are wrong when clean."""
        return len(self.survivors)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy(self) -> float:
        """Survivors as a fraction of all images."""
        return self.correct / self.total

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the accuracy, over the drawing of the images."""
        return clopper_pearson(self.correct, self.total)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Literal["TRUSTED", "SUSPECT"] | None:
        """SUSPECT if there are suspicions; None without a check. An INVALID number is an error and never stored."""
        if self.suspicions is None:
            return None
        return "SUSPECT" if self.suspicions else "TRUSTED"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def is_upper_bound(self) -> bool:
        """True if only attacks of one kind were tried, or some attacks only on a sample.

        Attacks that use gradients do not notice masked ones, and attacks that use none are weak.
        """
        searches = [stage for stage in self.stages if stage.is_search]
        uses_gradients = any(not stage.is_black_box for stage in searches)
        uses_none = any(stage.is_black_box or stage.has_black_box for stage in searches)
        return bool(searches) and (self.sample is not None or not (uses_gradients and uses_none))

    @property
    def threat(self) -> Threat:
        """Norm and radius."""
        return Threat(norm=self.norm, eps=self.eps)

    @property
    def is_clean(self) -> bool:
        """True if nothing was attacked."""
        member = catalog("evaluators").get(self.evaluator)
        return member is not None and member.without_attack

    @property
    def clean_correct(self) -> int | None:
        """Number of these images that are right when clean; None if the file does not say."""
        if self.is_clean:
            return self.correct
        return self.stages[0].entered if self.stages else None

    def contradictions(self, stated: Mapping[str, Any]) -> list[str]:
        """Derived keys of the file that do not follow from the others.

        Args:
            stated: the file's content, from which this evaluation was read.
        """
        computed = self.model_dump(mode="json", include=set(type(self).model_computed_fields))
        return [
            f"{name}: the result says {stated.get(name)}; its other keys give {value}"
            for name, value in computed.items()
            # The first files (version 1) state fewer of them.
            if stated.get(name) != value and (name in stated or self.suspicions is not None)
        ]


class Sizes(Stored):
    """Number of images by split."""

    train: Count
    val: Count
    test: Count


class DataRecord(Stored):
    """Images of a run.

    Args:
        digest: of all images and labels.
        decode: how they were coded, such as JPEG; "" for raw pixels.
        extra_digest: of the additional training images; "" if there are none.
    """

    digest: str
    sizes: Sizes
    decode: str
    extra_digest: str = ""


class Session(Stored):
    """One process that worked on a run or an evaluation: commit, versions, device and command.

    What the session decided by itself, such as a halved batch, is kept as further keys.
    """

    model_config = ConfigDict(extra="allow")

    started: str
    command: list[str]
    device: str
    platform: str
    python: str
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool | None


class Provenance(Stored):
    """provenance.json of a run: its images and every session.

    Args:
        continued_from: folder, epochs and updates of the shorter run that it continues, whose sessions come first.
    """

    data: DataRecord
    sessions: list[Session]
    continued_from: str | None = None


class Record(Stored):
    """Line of train.jsonl: an epoch with its measures, which are further keys, or an event.

    Args:
        epoch: number of the epoch, from 0.
        seconds: of training, without checks.
        robust: robust accuracy in the check after the epoch.
        event: collapsed, rewound or failed; None for an epoch.
        text: description of the event.
    """

    model_config = ConfigDict(extra="allow")

    epoch: int
    seconds: float = 0.0
    robust: float | None = None
    event: str | None = None
    text: str = ""

    @property
    def measures(self) -> dict[str, Any]:
        """What the defense and the check measured, by name."""
        return self.model_extra or {}


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


class ModelSource(Stored):
    """How the user named the network that `robust eval` evaluated; the options of the command."""

    text: str | None = None
    overrides: Annotated[list[str], Field(strict=False)] = Field(default_factory=list)
    architecture: str | None = None
    model: str | None = None
    weights: str | None = None
    weights_key: str | None = None
    mean: str | None = None
    std: str | None = None
    data: str | None = None


class NetworkRecord(Stored):
    """Digest of the weights, and the normalisation before the network (None: of each image)."""

    sha256: str
    mean: list[float] | None
    std: list[float] | None


class Chain(Stored):
    """Digest chain of results; see `store.chain`.

    Args:
        links: SHA-256 of every content, in the order of the chain.
        digest: of all links.
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

    def clean_accuracy(self, key: str) -> float | None:
        """Clean accuracy on the images of an evaluation; None if no file says it.

        From the evaluation itself, or from the clean one of the same network if it covers these images.
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
    """

    status: str
    seed: int
    selection: Selection
    epoch: int | None
    collapsed_at: int | None
    claim: Claim | None = None


class EvalResults(_Results):
    """results.json of `robust eval`, and what its --out writes.

    Args:
        checkpoint: file name of the checkpoint of a run; None for other networks.
        training_seed: None for networks that `robust train` did not make.
        subject: how the user named the network.
        provenance: the process that evaluated it.
        notes: what a reader must know about these conditions.
    """

    checkpoint: str | None = None
    training_seed: int | None
    subject: ModelSource
    network: NetworkRecord
    provenance: Session
    notes: list[str]


Results = RunResults | EvalResults


def read_results(path: Path) -> Results:
    """Read results.json of a run or of `robust eval`.

    Raises:
        RobustCliError: the file is missing, damaged or foreign; names the keys.
    """
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


def read_evaluation(path: Path) -> Evaluation:
    """Read one stored evaluation.

    Raises:
        RobustCliError: the file is missing, damaged or foreign; names the keys.
    """
    return parse_evaluation(read_json(path), path)


def parse_evaluation(raw: Any, path: Path) -> Evaluation:
    """Evaluation from the content of its file; `path` is for messages."""
    return parsed(Evaluation, _upgraded_evaluation(raw), path)


def read_provenance(path: Path) -> Provenance:
    """Read provenance.json of a run.

    Raises:
        RobustCliError: the file is missing, damaged or foreign; names the keys.
    """
    return parsed(Provenance, read_json(path), path)


def parse_record(line: str, path: Path, number: int) -> Record:
    """Record from a line of train.jsonl; path and line number are for messages."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RobustCliError(f"{path}: line {number}: not JSON: {error}") from error
    return parsed(Record, raw, f"{path}: line {number}")


def write_results(path: Path, results: Results) -> None:
    """Write results.json, whole or not at all."""
    write_json(path, results.to_json())


def json_schema() -> dict[str, Any]:
    """JSON Schema of results.json."""
    return TypeAdapter(Results).json_schema(mode="serialization", by_alias=True)


def _upgraded(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Content of a file of any version as that of the newest."""
    evaluations = raw.get("evaluations")
    if raw.get("schema") == SCHEMA or not isinstance(evaluations, Mapping):
        return raw
    upgraded = {key: _upgraded_evaluation(evaluation) for key, evaluation in evaluations.items()}
    return {**raw, "schema": SCHEMA, "evaluations": upgraded}


def _upgraded_evaluation(raw: Any) -> Any:
    """Version 1 knew one engine of AutoAttack when it had no fingerprints, and did not name it."""
    if not isinstance(raw, Mapping) or raw.get("evaluator") != "autoattack" or "fingerprint" in raw:
        return raw
    parameters = raw.get("parameters")
    return {**raw, "parameters": {"engine": "reference", **parameters}} if isinstance(parameters, Mapping) else raw
