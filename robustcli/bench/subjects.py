"""Subject of benchmarks of evaluations: a network, images and a threat model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluators import Evaluator
from robustcli.measuring.machine import circumstances
from robustcli.models.find import find_model
from robustcli.models.open import open_model, threat_of
from robustcli.registry.types import Norm
from robustcli.runtime.device import choose_device
from robustcli.store.results import ModelRequest
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class BenchSubject:
    """A network in eval mode, images and labels on its device, and the threat model.

    Args:
        name: name of the network.
    """

    name: str
    network: nn.Module
    x: Tensor
    y: Tensor
    threat: ThreatModel

    def noise(self, seed: int = 0) -> IndexedNoise:
        """Return the noise of all images."""
        return IndexedNoise(seed, torch.arange(len(self.x), device=self.x.device))

    def gather(self, evaluator: Evaluator, threat: ThreatModel | None = None, *, seed: int = 0) -> Evidence:
        """Return the results of an evaluator on all images, in the threat model of the subject or another."""
        return gather(evaluator, self.network, self.x, self.y, threat or self.threat, self.noise(seed))

    def header(self, peers: Sequence[str] = ()) -> dict[str, Any]:
        """Return the fields that all measurements of this subject and other packages begin with."""
        return {
            **vars(circumstances(self.x.device, peers)),
            "subject": self.name,
            "threat": str(self.threat),
            "images": len(self.x),
        }


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
    """Return the network of a checkpoint with its first test images; threat and data default to its own.

    Raises:
        RobustCliError: the checkpoint, the data or the threat model is missing or invalid.
    """
    request = ModelRequest(text=checkpoint, overrides=tuple(overrides), data=data)
    model = find_model(request)
    threat = threat_of(model.defaults, norm, eps, where="robust bench")
    opened = open_model(request, model, threat, choose_device(device))
    x, y = opened.data.evaluation("test", examples)
    return BenchSubject(model.defaults.name, opened.loaded.network, x, y, threat)
