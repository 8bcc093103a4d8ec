"""Accuracy under adversarial images of another network."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from robustcli.attacks import Attack
from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, Case, Stage
from robustcli.models.build import network_of
from robustcli.registry.types import Count
from robustcli.store import checkpoint


@EVALUATORS.register("transferred", smoke={"source": "source.pt", "attack": {"name": "fgsm"}})
@dataclass(frozen=True, kw_only=True)
class Transferred:
    """Accuracy under one attack that sees another network: its adversarial images are judged by the one evaluated.

    It uses no gradient of the network evaluated, so where it breaks images that attacks by gradients left, gradients
    are masked. What the attack keeps is chosen by the other network: `keep: last` carries over better than `fooled`,
    which stops as soon as that one errs.

    When to use: to ask whether masked gradients protect the network: images made on another network do not need
    them.

    First setting: attack: {name: mim} with a naturally trained network as the source.

    Args:
        source: a checkpoint of `robust train`, for the same images; the network that the attack sees.
        attack: the attack.
        batch_size: images per attack; changes memory and speed, not the number.

    Reference: Papernot, McDaniel and Goodfellow, 2016; as a check of evaluations: Carlini et al., 2019, section 3.
    """

    source: str
    attack: Attack
    batch_size: Count = 250

    @property
    def files(self) -> tuple[str, ...]:
        """What the findings depend on beside the settings."""
        return (self.source,)

    def stages(self, case: Case) -> list[Stage]:
        searcher = partial(_network_of, Path(self.source), case)
        stage = Stage.of(self.attack, self.batch_size).renamed("transferred ")
        return [replace(stage, searcher=searcher, is_transfer=True)]


def _network_of(path: Path, case: Case, model: nn.Module) -> nn.Module:
    """The network in a checkpoint, where the one that is evaluated is."""
    contents = checkpoint.load(path)
    found, expected = tuple(contents["shape"]), (*case.shape, case.classes)
    if found != expected:
        words = ["x".join(map(str, shape[:3])) + f" images of {shape[3]} classes" for shape in (found, expected)]
        raise RobustCliError(f"source: {path}: takes {words[0]}; these are {words[1]}")
    _, network = network_of(contents, next(model.parameters()).device)
    return network.requires_grad_(False)
