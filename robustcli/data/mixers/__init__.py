"""Mixers: mix the images of a training batch with each other, together with their labels. One per file."""

from abc import abstractmethod
from typing import Protocol

from torch import Tensor

from robustcli.data.targets import Labels
from robustcli.registry.registry import Registry
from robustcli.threat.noise import Noise

MIXERS = Registry("mixers")


@MIXERS.protocol
class Mixer(Protocol):
    """Settings of a mixer; a batch is mixed before it is attacked, so that attack and loss see the mixed labels."""

    @abstractmethod
    def __call__(self, x: Tensor, labels: Labels, classes: int, rng: Noise) -> tuple[Tensor, Labels]:
        """Return mixed images (n, c, h, w) in [0, 1] and class shares (n, k), or the input if nothing is mixed.

        It never waits for the device. The number of random draws depends only on the settings and the shape of x.

        Args:
            x: images in [0, 1].
            labels: labels (n,) or class shares (n, k).
            classes: k.
        """
        ...
