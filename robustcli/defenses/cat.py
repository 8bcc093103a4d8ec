"""CAT, curriculum adversarial training: more attack steps once the network withstands those it has met."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks import Attack
from robustcli.attacks.losses import labels_of
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, Metrics, OuterLoss
from robustcli.defenses.min_max import MinMax
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, Count, Positive, Share, Size
from robustcli.threat.noise import Noise


@dataclass(frozen=True)
class ScoredCrossEntropy(OuterLoss):
    """CE(f(x'), y), which also reports the accuracy on the adversarial images."""

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "RunningScored":
        return RunningScored()


class RunningScored:
    """A ScoredCrossEntropy; it keeps nothing from one update to the next."""

    def __init__(self) -> None:
        self.metrics: Metrics = {}

    def begin(self, batch: Batch, progress: Progress) -> None:
        self.metrics = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x_adv)
        if not self.metrics:  # The first time: later ones are at perturbed weights.
            is_right = logits.detach().argmax(1) == labels_of(batch.y)
            self.metrics = {"robust_train": is_right.float().mean()}
        return F.cross_entropy(logits, batch.y)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class RisingSteps:
    """The attack's steps K rise by `increase` after every epoch whose adversarial images were right often enough.

    Args:
        first: K of the first epoch.
        most: K never exceeds it.
        raise_at: accuracy of an epoch, at K steps and before each update, from which on K rises.
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
        images: of that epoch, seen so far.
        right: how many of them were right, on the device.
    """

    def __init__(self, settings: RisingSteps, device: torch.device) -> None:
        self.settings = settings
        self.steps, self.epoch, self.images = settings.first, -1, 0
        self.right = torch.zeros((), device=device)

    @property
    def metrics(self) -> Metrics:
        return {"attack_steps": torch.full_like(self.right, self.steps)}

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        if not isinstance(attack, Pgd):
            raise RobustCliError(
                "defense cat raises the steps of its attack as training goes on; only pgd can be written in its place"
            )
        if int(progress.epoch) != self.epoch:
            self._begin(int(progress.epoch))
        return replace(attack, steps=self.steps)

    def see(self, metrics: Metrics, images: int) -> None:
        self.right = self.right + images * metrics["robust_train"]
        self.images += images

    def _begin(self, epoch: int) -> None:
        # The only place in an epoch that waits for the device: its attacks depend on the answer.
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
    step_size: Positive | None = None,
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Cross-entropy at the images of a PGD that takes more steps once the network withstands those that it takes.

    An epoch is attacked with K steps. If at least `raise_at` of its adversarial images were classified correctly,
    each before the update that it serves and with the batch's own statistics, the next epoch has `increase` more.
    Of the paper this is only the curriculum: images of earlier strengths are not mixed into the batches. Threshold
    and increase are this project's.

    When to use: where the first epochs of strong adversarial training fail, or where cheap early epochs are wanted.

    First setting: the defaults (1 step at first, at most 10); lower raise_at if K never rises, which attack_steps
    in the record shows.

    Args:
        steps: the most that K rises to.
        first_steps: K of the first epoch; 0 is random noise.
        increase: steps added at a time.
        raise_at: accuracy on the adversarial images of an epoch from which on K rises.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        attack_bn: mode of the model while it is attacked: eval, train or batch_no_update.

    Reference: Cai, Du, Liu and Song, "Curriculum Adversarial Training", IJCAI 2018, arXiv 1805.04807.
    """
    if first_steps > steps:
        raise RobustCliError(f"defense.first_steps: {first_steps} are more than the {steps} of 'steps', the most")
    return MinMax(
        attack=Pgd(steps=first_steps, step_size=step_size),
        loss=ScoredCrossEntropy(),
        attack_bn=attack_bn,
        curriculum=RisingSteps(first=first_steps, most=steps, increase=increase, raise_at=raise_at),
    )
