"""Who is still classified correctly. One evaluator per file.

An evaluator says which attacks an image has to survive; evaluation/evidence.py carries them out, checks what they
claim and keeps the record, and evaluation/evaluate.py turns the record into a result.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import Protocol

from torch import nn

from robustcli.attacks import Attack
from robustcli.registry.registry import Registry
from robustcli.threat.threat import ThreatModel

EVALUATORS = Registry("evaluators")


@dataclass(frozen=True)
class Case:
    """What an evaluation is about, as far as its attacks depend on it.

    Args:
        threat: the threat model.
        shape: channels, height and width of an image.
        classes: logits of the model.
    """

    threat: ThreatModel
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack on every image that has survived so far.

    Args:
        name: of the stage, unlike any other of its evaluation.
        attack: the attack.
        noise: key of its noise; stages with equal keys draw equal numbers for an image.
        batch_size: images per call; None hands over all of them, for an attack that makes batches itself.
        has_black_box: whether that holds of a part of it, where it is several attacks in one.
        sample: of more survivors than this, so many are attacked first, and the others only if one of those breaks;
            None attacks all.
        threat: of this stage; None is that of the evaluation.
        searcher: from the network, the one that the attack searches with; None is the network itself.
        is_transfer: whether that is a network of its own, so that no gradient of the one evaluated is used.
    """

    name: str
    attack: Attack
    noise: str
    batch_size: int | None = 250
    has_black_box: bool = False
    sample: int | None = None
    threat: ThreatModel | None = None
    searcher: Callable[[nn.Module], nn.Module] | None = None
    is_transfer: bool = False

    @classmethod
    def of(cls, attack: Attack, batch_size: int) -> "Stage":
        """The stage of one attack, named after its kind.

        Its noise too is that of the kind, not the settings: a sweep over steps walks on from the same starts.
        """
        kind = type(attack).__name__
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
        return cls(name=name, attack=attack, noise=kind, batch_size=batch_size)

    @property
    def is_black_box(self) -> bool:
        """Whether no gradients of the network are used, so that masked ones do not stop the attack."""
        return self.is_transfer or bool(getattr(self.attack, "is_black_box", False))

    def with_points(self, count: int) -> "Stage":
        """The same stage, whose attack has at most so many points in one pass where it says how many it has."""
        points: int | None = getattr(self.attack, "batch_size", None)
        if self.batch_size is None or points is None:
            return self
        assert is_dataclass(self.attack)
        # Fewer than images per call are somebody's wish, and never raised.
        limit = count if points >= self.batch_size else min(points, count)
        return replace(self, attack=replace(self.attack, batch_size=limit))

    def renamed(self, prefix: str) -> "Stage":
        """The same stage, as a part of a larger evaluation."""
        return replace(self, name=f"{prefix}{self.name}")


class Evaluator(Protocol):
    """Settings of an evaluation.

    What a reader of the number must know (a departure from the published protocol) is raised as a Python warning
    by `stages` or by the attacks. An evaluator made for models whose logits vary from call to call has an attribute
    `looks` above 1: so many forwards then judge an image, and most of them decide. Without it such a model is an
    error. One that reads files, such as another network, has an attribute `files` with their paths; one that is
    about another threat than the spec's has an attribute `threat`; one that searches in bf16 has an attribute
    `is_hasty`.
    """

    @property
    def batch_size(self) -> int:
        """Images per forward on clean images; changes memory and speed, not the number."""
        ...

    def stages(self, case: Case) -> list[Stage]:
        """The attacks in their order: each sees the images that survived those before it."""
        ...


def threat_of(evaluator: Evaluator, threat: ThreatModel) -> ThreatModel:
    """The threat of an evaluation: the given one, unless the evaluator has one of its own."""
    own: ThreatModel = getattr(evaluator, "threat", threat)
    return own


def looks_of(evaluator: Evaluator) -> int:
    """How many forwards judge an image."""
    return int(getattr(evaluator, "looks", 1))


def files_of(evaluator: Evaluator) -> tuple[str, ...]:
    """Paths of the files that the findings depend on."""
    return tuple(getattr(evaluator, "files", ()))


def is_hasty(evaluator: Evaluator) -> bool:
    """Whether any part of it searches in bf16."""
    return bool(getattr(evaluator, "is_hasty", False))


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..count."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
