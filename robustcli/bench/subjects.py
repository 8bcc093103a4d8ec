"""What the benches of evaluations are about: a network, images that it may be attacked on, and a threat."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustcli.build import choose_device, load_data
from robustcli.errors import RobustCliError
from robustcli.fields import Norm
from robustcli.memory import keep_freed_memory
from robustcli.naming import Wanted, find_subject
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel
from robustcli.yamlfile import parse_scalar


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
    known = terms.threat
    if known is None and (norm is None or eps is None):
        raise RobustCliError(f"{terms.name}: does not say what it is to resist; write --norm and --eps")
    radius = Fraction(known.eps) if known is not None else Fraction(0)
    if eps is not None:
        number = parse_scalar(eps)
        if not isinstance(number, int | float):
            raise RobustCliError(f"--eps: '{eps}' is not a number such as 8/255")
        radius = Fraction(getattr(number, "fraction", number))
    chosen = choose_device(device)
    images = load_data(terms.data, chosen)
    keep_freed_memory()
    network = subject.build(images, chosen).network
    x, y = images.evaluation("test", examples)
    return BenchSubject(terms.name, network, x, y, ThreatModel(norm or (known.norm if known else "linf"), radius))
