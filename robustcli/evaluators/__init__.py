"""Which images are still classified correctly. One evaluator per file.

An evaluator names the attacks that an image has to survive. evaluation/gather.py runs them, confirms what they find
and keeps the record; evaluation/evaluate.py turns the record into a result.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.surrogate import Surrogate
from robustcli.errors import RobustCliError
from robustcli.registry.registry import Registry
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

EVALUATORS = Registry("evaluators")


@dataclass(frozen=True)
class AttackContext:
    """The part of an evaluation that the choice of its attacks depends on.

    Args:
        threat: the threat model.
        shape: channels, height and width of an image.
        classes: number of logits of the model.
    """

    threat: ThreatModel
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class Some:
    """A number of images among those that survive.

    Args:
        least: minimum number, if as many survive.
        one_in: one of this many survivors, if that gives more images.
    """

    least: int
    one_in: int

    def of(self, survivors: int) -> int:
        """Number of images among survivors."""
        return min(survivors, max(self.least, survivors // self.one_in))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack on every image that has survived so far.

    Args:
        name: unique within the evaluation.
        attack: the attack.
        noise: key of its noise; stages with equal keys draw equal numbers for an image.
        batch_size: images per call; None passes all of them, for an attack that makes its own batches.
        has_black_box: whether a part of the attack is a black-box attack, if it is several attacks in one.
        sample: with more survivors than this, attack a random sample of this size first, and the other images only if
            one of the sample breaks; None attacks all.
        subset: attack only this many, drawn at random among the survivors when the first such stage begins; later
            stages attack the same images. None attacks all.
        nearest: attack only this many, those nearest to a wrong class by the largest margin so far; with `subset`, in
            addition to those drawn. None attacks all.
        hands_on: keep the points at which the attack failed, for a later stage. An evaluation that is resumed runs the
            stage again.
        starts: start at the points of the largest margin that earlier stages handed on, instead of the attack's own;
            the attack then has a method `improve`.
        threat: threat model of this stage; None is that of the evaluation.
        surrogate: network that the attack searches with; None is the network evaluated.
        faster: network to search with instead where its passes take clearly less time, which is measured.
        is_transfer: whether the surrogate is another network, so that no gradient of the network evaluated is used.
        similar: stages of about the same cost, which `robust plan` measures instead because the attack cannot be
            shortened; empty for most attacks.
    """

    name: str
    attack: Attack
    noise: str
    batch_size: int | None = 250
    has_black_box: bool = False
    sample: int | None = None
    subset: Some | None = None
    nearest: Some | None = None
    hands_on: bool = False
    starts: bool = False
    threat: ThreatModel | None = None
    surrogate: Surrogate | None = None
    faster: Surrogate | None = None
    is_transfer: bool = False
    similar: tuple["Stage", ...] = ()

    @classmethod
    def of(cls, attack: Attack, batch_size: int) -> "Stage":
        """The stage of one attack, named after its class.

        Its noise depends only on the class, not on the settings: in a sweep over steps all attacks start at the same
        points.
        """
        kind = type(attack).__name__
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
        return cls(name=name, attack=attack, noise=kind, batch_size=batch_size)

    @property
    def is_black_box(self) -> bool:
        """Whether no gradients of the network are used, so that masked gradients do not stop the attack."""
        return self.is_transfer or self.attack.is_black_box

    def limited(self, points: int) -> "Stage":
        """The same stage with at most `points` points in one pass of its attack."""
        if self.batch_size is None:
            return self
        return replace(self, attack=self.attack.limited(points, self.batch_size))

    def renamed(self, prefix: str) -> "Stage":
        """The same stage, as a part of a larger evaluation."""
        return replace(self, name=f"{prefix}{self.name}")


@dataclass(frozen=True)
class Certificate:
    """What is proved of some images.

    Args:
        is_certified: mask (n,) of the images whose class is right and stays so in the whole threat set.
        abstained: images on which a smoothed network names no class, which counts as wrong; None if it always does.
        chance: probability with which the certificate of an image may be wrong.
    """

    is_certified: Tensor
    abstained: int | None = None
    chance: float = 0.0


class Certifier(Protocol):
    """Proves a lower bound of the robust accuracy, next to the upper bound of the attacks of its evaluator.

    Certifiers derive from this class.
    """

    @property
    def smooths(self) -> bool:
        """Whether it is about a smoothed network, whose class is that of most of several noisy forwards."""
        return False

    def network(self, model: nn.Module) -> nn.Module:
        """The network that certificate and attacks are about."""
        return model

    def certify(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Certificate:
        """Certify some images (n, c, h, w) with labels (n,).

        Args:
            model: the network evaluated, not the one that `network` returns.
            rng: numbers the images.

        Raises:
            EvaluationError: it cannot be applied to this network.
        """
        ...


@EVALUATORS.protocol
class Evaluator(Protocol):
    """Settings of an evaluation.

    Evaluators derive from this class, which gives the properties their defaults. Anything that a reader of the number
    must know, such as a departure from the published protocol, is raised as a Python warning by `stages` or by the
    attacks.

    Attributes:
        batch_size: images per forward pass on clean images; changes memory and speed, not the number.
    """

    batch_size: int

    @property
    def votes(self) -> int:
        """Forward passes per image, the majority of which decides its class.

        More than 1 is for models whose logits vary from call to call; with 1 such a model is an error.
        """
        return 1

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files that the findings depend on, such as another network."""
        return ()

    @property
    def threat(self) -> ThreatModel | None:
        """Threat model of the evaluation; None is that of the spec."""
        return None

    @property
    def certifier(self) -> Certifier | None:
        """What proves a lower bound of the accuracy; None for attacks only."""
        return None

    def network(self, model: nn.Module) -> nn.Module:
        """The network that is attacked and classifies."""
        return model if self.certifier is None else self.certifier.network(model)

    @abstractmethod
    def stages(self, context: AttackContext) -> list[Stage]:
        """The attacks in order; each sees the images that survived those before it."""
        ...


def without_certificates(name: str, members: Sequence[Evaluator]) -> None:
    """Refuse evaluators with certificates inside another one, which joins only attacks."""
    if any(member.certifier is not None for member in members):
        raise RobustCliError(f"evaluator {name}: joins attacks; write evaluators with certificates under `evaluate`")


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..count."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
