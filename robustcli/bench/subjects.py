"""What the benches of evaluations are about: a network, images that it may be attacked on, and a threat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.assess import threat_of
from robustcli.build import choose_device, load_data
from robustcli.fields import Norm
from robustcli.memory import keep_freed_memory
from robustcli.naming import Wanted, find_subject
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel


@dataclass(frozen=True)
class BenchSubject:
    """A network in eval mode, images and labels on its device, and the threat.

    Args:
        name: of the network.
    """

    name: str
    network: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel

    def noise(self, seed: int = 0) -> IndexedNoise:
        """Noise of all images."""
        return IndexedNoise(seed, torch.arange(len(self.x), device=self.x.device))


def open_subject(
    checkpoint: str,
    overrides: Sequence[str],
    *,
    norm: Norm | None,
    eps: str | None,
    examples: int,
    data: str | None,
    device: str,
) -> BenchSubject:
    """The network of a checkpoint with its first test images; threat and data are its own where not said.

    Raises:
        RobustCliError: something a user can mend.
    """
    subject = find_subject(Wanted(text=checkpoint, overrides=tuple(overrides), data=data))
    terms = subject.terms
    threat = threat_of(terms, norm, eps, where="robust bench")
    chosen = choose_device(device)
    images = load_data(terms.data, chosen)
    keep_freed_memory()
    network = subject.build(images, chosen).network
    x, y = images.evaluation("test", examples)
    return BenchSubject(terms.name, network, x, y, threat)
