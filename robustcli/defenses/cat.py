"""CAT, curriculum adversarial training: more attack steps once the network resists the current ones."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks import Attack
from robustcli.attacks.losses import labels_of
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, Metrics, OuterLoss
from robustcli.defenses.min_max import MinMax, adjusted
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, Count, Share, Size, StepSize
from robustcli.threat.noise import Noise


@dataclass(frozen=True)
class ScoredCrossEntropy(OuterLoss):
    """CE(f(x'), y), which also reports the accuracy on the adversarial images."""

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "RunningScored":
        return RunningScored()


class RunningScored:
    """State of a ScoredCrossEntropy, which keeps nothing between updates."""

    def __init__(self) -> None:
        self.metrics: Metrics = {}

    def begin(self, batch: Batch, progress: Progress) -> None:
        self.metrics = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x_adv)
        if not self.metrics:  # Only the first evaluation counts: later ones use perturbed weights.
            is_right = logits.detach().argmax(1) == labels_of(batch.y)
            self.metrics = {"robust_train": is_right.float().mean()}
        return F.cross_entropy(logits, batch.y)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class RisingSteps:
    """The attack's steps K rise by `increase` after every epoch with high accuracy on its adversarial images.

    Args:
        first: K of the first epoch.
        most: largest number of attack steps, K.
        raise_at: accuracy of an epoch, with K steps and before each update, at which K rises.
    """

    first: int
    most: int
    increase: int
    raise_at: float

    def start(self, model: nn.Module) -> "RunningSteps":
        return RunningSteps(self, next(model.parameters()).device)


class RunningSteps:
    """A RisingSteps with its state.

    Args:
        steps: K.
        epoch: the current one; -1 before the first.
        images: number of images seen in that epoch.
        right: number of correctly classified images among them, on the device.
    """

    def __init__(self, settings: RisingSteps, device: torch.device) -> None:
        self.settings = settings
        self.steps, self.epoch, self.images = settings.first, -1, 0
        self.right = torch.zeros((), device=device)

    @property
    def metrics(self) -> Metrics:
        return {"attack_steps": torch.full_like(self.right, self.steps)}

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        if int(progress.epoch) != self.epoch:
            self._begin(int(progress.epoch))
        return adjusted(attack, steps=self.steps)

    def see(self, metrics: Metrics, images: int) -> None:
        self.right = self.right + images * metrics["robust_train"]
        self.images += images

    def _begin(self, epoch: int) -> None:
        # The only wait for the device in an epoch: the attack depends on the answer.
        if self.images and float(self.right) >= self.settings.raise_at * self.images:
            self.steps = min(self.settings.most, self.steps + self.settings.increase)
        self.epoch, self.images, self.right = epoch, 0, torch.zeros_like(self.right)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "epoch": self.epoch, "images": self.images, "right": self.right}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.epoch, self.images = state["steps"], state["epoch"], state["images"]
        self.right = state["right"].to(self.right.device)


@DEFENSES.register(
    "cat",
    sets="steps",
    measured="takes more steps as training goes on: measured with those of its first epoch",
    smoke={"steps": 4, "raise_at": 0.0},
    passes=(2, 1, 1),
)
def cat(
    *,
    steps: Count = 10,
    first_steps: Size = 1,
    increase: Count = 1,
    raise_at: Share = 0.5,
    step_size: StepSize = None,
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at adversarial images of PGD, with more steps once the network resists the current ones.

    The attack has K steps during an epoch. If the accuracy on the epoch's adversarial images, each measured before its
    update and with batch statistics, is at least `raise_at`, K grows by `increase` for the next epoch. Only this
    curriculum is taken from the paper: images of weaker attacks are not mixed into the batches. The paper gives no
    values for threshold and increase; the defaults are ours.

    When to use: where the first epochs of strong adversarial training fail, or to make early epochs cheap.

    First setting: the defaults (from 1 to at most 10 steps). Lower raise_at if K never rises; the training record
    lists attack_steps.

    Args:
        steps: largest number of attack steps, K.
        first_steps: K of the first epoch; 0 is random noise.
        increase: steps added at a time.
        raise_at: accuracy on the adversarial images of an epoch at which K rises.

    Reference: Cai, Du, Liu and Song, "Curriculum Adversarial Training", IJCAI 2018, arXiv 1805.04807.
    """
    if first_steps > steps:
        raise RobustCliError(f"defense.first_steps: {first_steps} exceeds the maximum, steps: {steps}")
    return MinMax(
        attack=Pgd(steps=first_steps, step_size=step_size),
        loss=ScoredCrossEntropy(),
        attack_bn=attack_bn,
        curriculum=RisingSteps(first=first_steps, most=steps, increase=increase, raise_at=raise_at),
    )
