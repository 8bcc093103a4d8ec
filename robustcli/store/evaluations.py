"""Stored evaluations: the outcome of every image, the attacks in order, and derived values.

Evaluations of version 1 may lack `stages`, `suspicions` and `fingerprint`, because the first ones were made before
attacks were recorded separately and checked afterwards. They get `suspicions: null` and have no verdict. AutoAttack
without an `engine` was run by its authors' package.
"""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, computed_field

from robustcli.registry.catalog import catalog
from robustcli.specs.renamed import current
from robustcli.statistics import clopper_pearson
from robustcli.store.files import read_json
from robustcli.store.models import Count, Radius, Stored, parsed

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
        sampled: number of attacked images that were drawn as a sample; None means no sample.
        nearest: number of attacked images that were chosen because they are nearest to a wrong class; None means that
            no images were chosen. Without a sample or a choice all that entered are attacked.
        has_black_box: a part of the stage used no gradients.
        is_search: the stage looked for the worst point; if not, it changed images at random, like corruptions.
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
    nearest: int | None = None
    has_black_box: bool = False
    is_search: bool = True
    threat: str | None = None

    @property
    def to_attack(self) -> int:
        """Number of images to attack."""
        counts = [count for count in (self.sampled, self.nearest) if count is not None]
        return sum(counts) if counts else self.entered


class Estimate(Stored):
    """Robust accuracy under attacks that ran on a sample of the survivors only, as a fraction of all images.

    Args:
        accuracy: the number in the interval that is nearest to what the attacks on all images found.
        low, high: exact 95 % interval, over the sampling of these images.
    """

    accuracy: float
    low: float
    high: float


class CertifiedRecord(Stored):
    """Certified lower bound of the robust accuracy on the images of an evaluation.

    Args:
        images: one character per image, in the order of the data: "1" certified, "0" not.
        abstained: images on which a smoothed network named no class, which are not certified; None if it always does.
        is_smoothed: the bound is about the network smoothed by noise.
        chance: probability with which the certificate of an image may be wrong.
    """

    images: Survivors
    abstained: int | None
    is_smoothed: bool
    chance: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy(self) -> float:
        """Certified images as a fraction of all."""
        return self.images.count("1") / len(self.images)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the accuracy, over the drawing of the images."""
        return clopper_pearson(self.images.count("1"), len(self.images))


class Evaluation(Stored):
    """Result of one evaluation: one character per image, with its conditions.

    Accuracy, interval and verdict are computed from `survivors`, `stages` and `suspicions`, not read from the file;
    `contradictions` compares both.

    Args:
        evaluator: registered name of the evaluator.
        parameters: its settings, as in the spec.
        norm, eps: norm and radius of the threat model; eps is exact text such as "8/255".
        seed: seed of the noise.
        survivors: one character per image, in the order of the data: "1" still correct, "0" not.
        forwards: images passed through the model.
        gradients: images for which a gradient through the logits was computed.
        seconds: wall-clock time of the evaluator, without the checks around it; the sum over processes, if several
            shared the images.
        stages: its attacks in their order.
        suspicions: signs that attacks failed for another reason than robustness; None without a check (version 1).
        warnings: other facts about the number, without duplicates.
        fingerprint: digests of everything that the survivors depend on.
        sample: one character per image, if the last attacks ran only on some images: "1" if the image was drawn at
            random for them, "0" if not, "2" (formerly) if it was one of those nearest to a wrong class, which were all
            attacked.
        estimate: estimated accuracy for all images; None if the attacks ran on all.
        certified: certified lower bound, next to the upper bound of the attacks; None if nothing was certified.
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
    certified: CertifiedRecord | None = None

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
        """Number of evaluated images, including those misclassified when clean."""
        return len(self.survivors)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy(self) -> float:
        """Survivors as a fraction of all images."""
        return self.correct / self.total

    @property
    def best_estimate(self) -> float:
        """Accuracy; where some attacks ran only on a sample, and it is an upper bound, the estimate."""
        return self.accuracy if self.estimate is None else self.estimate.accuracy

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the accuracy, over the sampling of the images."""
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
        """Number of these images that are correct when clean; None if unknown."""
        if self.is_clean:
            return self.correct
        return self.stages[0].entered if self.stages else None

    def contradictions(self, stated: Mapping[str, Any]) -> list[str]:
        """Return derived keys of the file that do not follow from the others.

        Args:
            stated: content of the file from which this evaluation was read.
        """
        computed = self.model_dump(mode="json", include=set(type(self).model_computed_fields))
        return [
            f"{name}: the result says {stated.get(name)}; its other keys give {value}"
            for name, value in computed.items()
            # The first files (version 1) have fewer of them.
            if not _is_near(stated.get(name), value) and (name in stated or self.suspicions is not None)
        ]


def _is_near(stated: Any, computed: Any) -> bool:
    """Return True if values are equal; numbers up to rounding, because quantiles differ between versions of SciPy."""
    if isinstance(stated, list) and isinstance(computed, list):
        return len(stated) == len(computed) and all(map(_is_near, stated, computed))
    if isinstance(stated, float) and isinstance(computed, float):
        return math.isclose(stated, computed, rel_tol=1e-9, abs_tol=1e-12)
    return bool(stated == computed)


def read_evaluation(path: Path) -> Evaluation:
    """Read one stored evaluation.

    Raises:
        RobustCliError: the file is missing, damaged or of another kind; the message has the keys.
    """
    return parse_evaluation(read_json(path), path)


def parse_evaluation(raw: Any, path: Path) -> Evaluation:
    """Evaluation from the content of its file; `path` is for messages."""
    return parsed(Evaluation, upgraded_evaluation(raw), path)


def upgraded_evaluation(raw: Any) -> Any:
    """Convert the content of an evaluation of any version to the newest one: current names, and AutoAttack's engine.

    Version 1 had only one engine before it had fingerprints, and did not name it.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("parameters"), Mapping):
        return raw
    words = current({"name": raw.get("evaluator"), **raw["parameters"]})
    name = words.pop("name")
    if name == "autoattack" and "fingerprint" not in raw:
        words = {"engine": "reference", **words}
    return {**raw, "evaluator": name, "parameters": words}


def broken_certificates(evaluations: Mapping[str, Evaluation]) -> Iterator[str]:
    """Contradictions between evaluations of one network: images that one certifies and another one breaks."""
    for key, evaluation in evaluations.items():
        proof = evaluation.certified
        for other, attacked in evaluations.items():
            if proof is None or proof.is_smoothed or other == key:
                continue
            if attacked.is_clean or attacked.threat != evaluation.threat or any(one.threat for one in attacked.stages):
                continue
            count = sum(
                (proves, lives) == ("1", "0") for proves, lives in zip(proof.images, attacked.survivors, strict=False)
            )
            if count:
                yield f"{key}: SUSPECT: certifies {count} images that {other} breaks; one of the two is wrong"
