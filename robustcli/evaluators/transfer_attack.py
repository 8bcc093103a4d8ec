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
from robustcli.models.find import checkpoint_in, find_source
from robustcli.models.model import prepared
from robustcli.models.schemes import scheme_of
from robustcli.registry.types import Count
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.results import ModelRequest


@EVALUATORS.register(
    "transfer_attack", formerly="transferred", smoke={"source": "source.pt", "attack": {"name": "fgsm"}}
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
            or a name such as robustbench:NAME or timm:NAME.
        attack: the attack.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Papernot, McDaniel and Goodfellow, 2016; as a check of evaluations: Carlini et al., 2019, section 3.
    """

    source: str
    attack: Attack
    batch_size: Count = 250

    @property
    def files(self) -> tuple[str, ...]:
        """The checkpoint of the other network; none if it is named otherwise."""
        if scheme_of(self.source) is not None:
            return ()
        path = Path(self.source)
        return (str(checkpoint_in(path)) if path.is_dir() else self.source,)

    def stages(self, context: AttackContext) -> list[Stage]:
        surrogate = OtherNetwork(self.source, context)
        stage = Stage.of(self.attack, self.batch_size).renamed("transferred ")
        return [replace(stage, surrogate=surrogate, is_transfer=True)]


@dataclass(frozen=True)
class OtherNetwork(Surrogate):
    """Search with another network, on the device of the network evaluated.

    Args:
        source: the other network, as users name it.
        context: shape of the images and number of classes.
    """

    source: str
    context: AttackContext

    def __call__(self, model: nn.Module) -> nn.Module:
        # Quantized layers have buffers instead of parameters, and a function has neither.
        held = next(chain(model.parameters(), model.buffers()), None)
        return _load_network(self.source, self.context, torch.device("cpu") if held is None else held.device)


def _load_network(text: str, context: AttackContext, device: torch.device) -> nn.Module:
    found = find_source(ModelRequest(text=text))
    expected = ImageShape(*context.shape, context.classes)
    if not isinstance(found, Path):
        network = prepared(found, expected, device, None, None, None).network
        with torch.no_grad():
            classes = network(torch.full((2, *context.shape), 0.5, device=device)).shape[1]
        if classes != context.classes:
            raise RobustCliError(f"source: {text}: gives {classes} classes; expected {context.classes}")
        return network.requires_grad_(False)
    checkpoint = NetworkCheckpoint.read(found)
    own = ImageShape(*checkpoint.shape)
    if own != expected:
        raise RobustCliError(f"source: {found}: takes {own.text}; expected {expected.text}")
    _, network = network_of(checkpoint, device, found)
    return network.requires_grad_(False)
