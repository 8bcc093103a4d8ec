"""Accuracy under adversarial images of another network."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.attacks import Attack
from robustcli.attacks.surrogate import Surrogate
from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.models.build import network_of
from robustcli.models.find import checkpoint_in, find_source, normalization_of
from robustcli.models.model import prepared
from robustcli.models.schemes import scheme_of
from robustcli.registry.types import Count
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.results import ModelRequest


@EVALUATORS.register(
    "transfer_attack",
    formerly="transferred",
    added={"architecture": None, "mean": None, "std": None},
    smoke={"source": "source.pt", "attack": {"name": "fgsm"}},
)
@dataclass(frozen=True, kw_only=True)
class Transferred(Evaluator):
    """Accuracy under one attack on another network, whose adversarial images are shown to the network evaluated.

    It uses no gradients of the network evaluated. If it breaks images that survive gradient attacks, gradients are
    masked. The other network decides which point the attack keeps: `keep: last` transfers better than `fooled`, which
    stops as soon as that network is wrong.

    When to use: to ask whether masked gradients protect the network: images made on another network do not need
    them.

    First setting: attack: {name: mim} with a naturally trained network as the source.

    Args:
        source: network that is attacked, for images of the same shape and classes: a checkpoint, the folder of a run,
            a name such as robustbench:NAME or timm:NAME, or a file of weights with `architecture`, `mean` and `std`.
        attack: the attack.
        architecture: architecture of a file of weights with its settings, such as "preact_resnet18 width=32".
        mean: mean in the normalization of a file of weights, one number for each channel or one for all; 0 for none.
        std: standard deviation in that normalization, in the same form; 1 for none.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Papernot, McDaniel and Goodfellow, 2016; as a check of evaluations: Carlini et al., 2019, section 3.
    """

    source: str
    attack: Attack
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: Count = 250

    @property
    def request(self) -> ModelRequest:
        """The other network, as on a command line."""
        name, *settings = [None] if self.architecture is None else self.architecture.split()
        mean, std = (None if values is None else ",".join(map(str, values)) for values in (self.mean, self.std))
        overrides = tuple(f"architecture.{setting}" for setting in settings)
        return ModelRequest(text=self.source, architecture=name, overrides=overrides, mean=mean, std=std)

    @property
    def files(self) -> tuple[str, ...]:
        """The checkpoint of the other network; none if it is named otherwise."""
        if scheme_of(self.source) is not None:
            return ()
        path = Path(self.source)
        return (str(checkpoint_in(path)) if path.is_dir() else self.source,)

    def stages(self, context: AttackContext) -> list[Stage]:
        surrogate = OtherNetwork(self.request, context)
        stage = Stage.of(self.attack, self.batch_size).renamed("transferred ")
        return [replace(stage, surrogate=surrogate, is_transfer=True)]


@dataclass(frozen=True)
class OtherNetwork(Surrogate):
    """Search with another network, on the device of the network evaluated.

    Args:
        request: the other network, as users name it.
        context: shape of the images and number of classes.
    """

    request: ModelRequest
    context: AttackContext

    def __call__(self, model: nn.Module) -> nn.Module:
        # Quantized layers have buffers instead of parameters, and a function has neither.
        held = next(chain(model.parameters(), model.buffers()), None)
        return _load_network(self.request, self.context, torch.device("cpu") if held is None else held.device)


def _load_network(request: ModelRequest, context: AttackContext, device: torch.device) -> nn.Module:
    found = find_source(request)
    expected = ImageShape(*context.shape, context.classes)
    if not isinstance(found, Path):
        network = prepared(found, expected, device, *normalization_of(request), None).network
        with torch.no_grad():
            classes = network(torch.full((2, *context.shape), 0.5, device=device)).shape[1]
        if classes != context.classes:
            raise RobustCliError(f"source: {request.text}: gives {classes} classes; expected {context.classes}")
        return network.requires_grad_(False)
    try:
        checkpoint = NetworkCheckpoint.read(found)
    except RobustCliError as error:
        if not found.is_file():
            raise
        raise RobustCliError(
            f"source: {error}; a file of weights needs architecture, mean and std of transfer_attack in a spec, or "
            "robust eval M1 M2 --transfer --architecture NAME"
        ) from error
    own = ImageShape(*checkpoint.shape)
    if own != expected:
        raise RobustCliError(f"source: {found}: takes {own.text}; expected {expected.text}")
    _, network = network_of(checkpoint, device, found)
    return network.requires_grad_(False)
