"""Small networks trained on the embedded digits in seconds; each depends only on its name."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.small_cnn import small_cnn
from robustcli.attacks.crafting import crafting
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import drawn_from
from robustcli.data.datasets.digits import digits
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class Trained:
    """A network in eval mode with frozen weights; test images and their labels.

    Args:
        threat: a radius that breaks some of the correctly classified images.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel


THREATS = {
    "linf": ThreatModel("linf", Fraction(1, 8)),
    "l2": ThreatModel("l2", Fraction(3, 4)),
    "l1": ThreatModel("l1", Fraction(5, 2)),
    # Trained on clean images only.
    "natural": ThreatModel("linf", Fraction(1, 15)),
    # A robust network for the digits 0 to 4.
    "five": ThreatModel("linf", Fraction(1, 8)),
}


@cache
def trained(name: str) -> Trained:
    """The network for a key of THREATS."""
    source, threat = digits(), THREATS[name]
    classes = 5 if name == "five" else 10
    x, y = source.train.read(torch.arange(len(source.train.labels))), source.train.labels
    x, y = x[y < classes], y[y < classes]
    attack = Pgd(steps=5, step_size=threat.radius / 3)
    noise = StreamNoise.on(torch.device("cpu"))
    with drawn_from(0):
        model = small_cnn(ImageShape(1, 8, 8, classes), width=8, hidden=32)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for update in range(180):
            part = torch.randint(len(x), (64,))
            x_seen = x[part]
            if name != "natural":
                with crafting(model, "eval"):
                    x_seen = attack(model, x_seen, y[part], threat, noise.reseed(0, update))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_seen), y[part]).backward()
            optimizer.step()
    model.eval().requires_grad_(False)
    x, y = source.test.read(torch.arange(len(source.test.labels))), source.test.labels
    with torch.no_grad():
        # The package attacks only correctly classified images.
        is_right = (y < classes) & (model(x).argmax(1) == y)
    return Trained(model, x[is_right], y[is_right], threat)
