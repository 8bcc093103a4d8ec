"""Accuracy under adversarial images of another network."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from robustcli.attacks import Attack
from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.models.build import network_of
from robustcli.registry.types import Count
from robustcli.store import checkpoint


@EVALUATORS.register("transferred", smoke={"source": "source.pt", "attack": {"name": "fgsm"}})
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
        source: checkpoint of `robust train` for images of the same shape and classes; the network that is attacked.
        attack: the attack.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Papernot, McDaniel and Goodfellow, 2016; as a check of evaluations: Carlini et al., 2019, section 3.
    """

    source: str
    attack: Attack
    batch_size: Count = 250

    @property
    def files(self) -> tuple[str, ...]:
        """The checkpoint of the other network."""
        return (self.source,)

    def stages(self, context: AttackContext) -> list[Stage]:
        surrogate = partial(_load_network, Path(self.source), context)
        stage = Stage.of(self.attack, self.batch_size).renamed("transferred ")
        return [replace(stage, surrogate=surrogate, is_transfer=True)]


def _load_network(path: Path, context: AttackContext, model: nn.Module) -> nn.Module:
    """Load the network of a checkpoint to the device of the model evaluated."""
    contents = checkpoint.load(path, ("shape", "mean", "std"))
    found, expected = tuple(contents["shape"]), (*context.shape, context.classes)
    if found != expected:
        shapes = ["x".join(map(str, shape[:3])) + f" images of {shape[3]} classes" for shape in (found, expected)]
        raise RobustCliError(f"source: {path}: takes {shapes[0]}; expected {shapes[1]}")
    _, network = network_of(contents, next(model.parameters()).device, path)
    return network.requires_grad_(False)
