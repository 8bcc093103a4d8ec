"""How the images of a training batch are mixed with each other, and their labels with them. One per file."""

from typing import Protocol

from torch import Tensor

from robustcli.registry.registry import Registry
from robustcli.threat.noise import Noise

MIXERS = Registry("mixers")


class Mixer(Protocol):
    """Mixes a batch before it is attacked, so that attack and loss see the mixed labels."""

    def __call__(self, x: Tensor, y: Tensor, classes: int, rng: Noise) -> tuple[Tensor, Tensor]:
        """Images (n, c, h, w) in [0, 1] and class shares (n, k), or both as given where nothing is mixed.

        Nothing waits for the device, and what is drawn depends on the settings and the shape of x alone.

        Args:
            x: images in [0, 1].
            y: labels (n,) or class shares (n, k).
            classes: k.
        """
        ...
