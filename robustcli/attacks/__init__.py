"""x_adv = the worst point of the threat set around x, as far as we can find. One attack per file."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from robustcli.registry.registry import Registry
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

ATTACKS = Registry("attacks")


class Attack(Protocol):
    """Settings of an attack; calling it searches the threat set.

    It stays in the threat set (but for settings that serve training alone, see n_fgsm.py) and leaves weights,
    gradients, modes and buffers of the model alone. The mode in which the model is attacked is the caller's
    (see crafting.py).
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        """Adversarial images for x (n, c, h, w) and labels y (n,) or class shares y (n, k)."""
        ...


@runtime_checkable
class ReportingAttack(Protocol):
    """An attack that can also say how its search went, for the record of training."""

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What calling it returns, and means over the batch: scalars on the device, the same names every time."""
        ...


def takes_one_step(attack: Attack) -> bool:
    """Whether an attack is a single gradient step: by its `steps`, or by its word `is_one_step` where it has none."""
    return getattr(attack, "steps", 0) == 1 or getattr(attack, "is_one_step", False)
