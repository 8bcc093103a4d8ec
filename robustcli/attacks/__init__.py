"""Attacks: search the threat set around x for the worst point x_adv. One attack per file."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, Self

from torch import Tensor, nn

from robustcli.attacks.losses import LOSSES
from robustcli.registry.registry import Registry
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

ATTACKS = Registry("attacks")


@ATTACKS.protocol
class Attack(Protocol):
    """Settings of an attack; calling it searches the threat set.

    Attacks derive from this class, which gives the attributes below their defaults. The result stays in the threat set
    (except with settings that only serve training, see n_fgsm.py). Weights, gradients, modes and buffers of the model
    stay as they are. The caller sets the mode in which the model is attacked (see crafting.py).

    Attributes:
        steps: gradient steps; 0 if the attack does not count any.
        gradients: number of averaged gradients per step; more than 1 is for models whose logits vary.
        moves: whether it changes images.
        is_black_box: whether it uses no gradients.
        is_given: whether it returns existing examples instead of searching.
        is_search: whether it looks for the worst point; if not, it changes images at random, like corruptions.
        loss: objective that it raises, where it has one.
        start: where the search starts; "clean" is the image itself.
        keep: point that is returned; "fooled" is the first one that is misclassified.
        length: name of the setting that says how long it searches, where it has one.
        repeats: names of settings that repeat the search, from other starts or for other classes.
        alike: settings with which a short search costs as much per step as a long one, where the steps differ.
    """

    steps: int = 0
    gradients: int = 1
    moves: bool = True
    is_black_box: bool = False
    is_given: bool = False
    is_search: bool = True
    loss: str = "ce"
    start: str = "random"
    keep: str = "last"
    length: str = "steps"
    repeats: tuple[str, ...] = ("restarts", "targets")
    alike: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        """Adversarial images for x (n, c, h, w) and labels y (n,) or class shares y (n, k)."""
        ...

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the result of a call, and metrics of the search for the training record.

        Metrics are means over the batch: scalars on the device, with the same names in every call.
        """
        return self(model, x, y, threat, rng), {}

    def perturbation(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        """Return x_adv - x, before it is clipped to [0, 1] if the search clips only its result."""
        return self(model, x, y, threat, rng) - x

    def improve(
        self, points: Tensor, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> Tensor:
        """Search from given points of the threat set; only for attacks that can."""
        raise TypeError(f"{type(self).__name__} cannot start at given points")

    def limited(self, points: int, images: int) -> "Attack":
        """The same attack with at most `points` points in one pass, if it makes its own batches.

        Args:
            images: images per call when memory is not short. A smaller limit set by the user is kept.
        """
        return self

    def longer(self) -> "Attack | None":
        """The same attack with twice as many steps, to check that it has converged; None if it adapts its steps."""
        return None

    def in_turn(self, number: int) -> "Attack":
        """The attack of one update of training; another one only if it alternates between several.

        Args:
            number: random number of the update.
        """
        return self

    @property
    def needs_labels(self) -> bool:
        """False if the search only moves away from the clean prediction, whatever the labels are."""
        leaves_prediction = any(name == self.loss and loss.rests_at_x for name, loss in LOSSES.items())
        return not leaves_prediction or self.keep == "fooled"

    @property
    def side_by_side(self) -> int:
        """Number of points of one image that may be in one pass."""
        return 1


class BatchedAttack(Attack):
    """An attack that makes its own batches; its dataclass has the setting `batch_size`."""

    batch_size: int | None = None

    def limited(self, points: int, images: int) -> Self:
        if self.batch_size is None:
            return self
        # A limit below the images per call was set by the user and is kept.
        limit = points if self.batch_size >= images else min(self.batch_size, points)
        limited: Self = replace(self, batch_size=limit)  # type: ignore[type-var]
        return limited
