"""The step of most published methods: the formula of adversarial training, line by line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks import Attack
from robustcli.attacks.crafting import crafting
from robustcli.attacks.settings import has_setting, with_settings
from robustcli.data.targets import Labels
from robustcli.defenses import Batch, Defense, Metrics, OuterLoss, RunningLoss, StatelessLoss
from robustcli.errors import RobustCliError
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import Regularizer, RunningRegularizer, add_penalty
from robustcli.optimization.regularizers.none import Unregularized
from robustcli.optimization.stateless import Stateful, Stateless
from robustcli.optimization.weights import RunningPerturbation, WeightPerturbation
from robustcli.optimization.weights.none import Unperturbed
from robustcli.registry.types import AttackBn
from robustcli.runtime import ranks
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class AdversarialCrossEntropy(StatelessLoss):
    """CE(f(x'), y), mean over the batch: the loss of methods that differ only in their attack."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x_adv), batch.y)


class RunningCurriculum(Stateful, Protocol):
    """Schedule of the attack during training, with its state."""

    @property
    def metrics(self) -> Metrics:
        """Metrics of its decision for this update; the same names every time."""
        ...

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        """The attack of one update, made from the attack in the settings."""
        ...

    def see(self, metrics: Metrics, images: int) -> None:
        """Receive the metrics of an update on a batch of `images` images, as tensors on the device."""
        ...


class Curriculum(Protocol):
    """Settings of a curriculum."""

    def start(self, model: nn.Module) -> RunningCurriculum:
        """Bind it to the training of a model."""
        ...


@dataclass(frozen=True)
class StatelessCurriculum(Stateless):
    """Base of a curriculum that depends only on the progress; by default the attack stays unchanged."""

    @property
    def metrics(self) -> Metrics:
        return {}

    def attack(self, attack: Attack, progress: Progress) -> Attack:
        return attack

    def see(self, metrics: Metrics, images: int) -> None:
        pass


def adjusted(attack: Attack, **settings: Any) -> Attack:
    """The attack with other settings, as a curriculum changes them during training.

    Raises:
        RobustCliError: it does not have them. Members declare what they change (`sets`), so specs are refused earlier.
    """
    missing = [name for name in settings if not has_setting(attack, name)]
    if missing:
        raise RobustCliError(
            f"defense.attack: its {' and '.join(missing)} changes during training, and {type(attack).__name__} has none"
        )
    return with_settings(attack, **settings)


@dataclass(frozen=True, kw_only=True)
class MinMax(Defense):
    """min over w of E loss(w + v, x, x_adv, y) + r(w), with x_adv from `attack` and v from `weights`.

    Args:
        attack: finds x_adv at the unperturbed weights.
        loss: the loss that the weights minimize.
        weights: the weight perturbation v at which the loss is computed.
        averaging: rule for the weights that are evaluated.
        regularizer: r, a penalty on the weights or a projection.
        attack_bn: mode of the model while it is attacked: "eval" (running statistics), "train" (batch statistics;
            every forward updates the running ones) or "batch_no_update".
        curriculum: schedule of the attack during training.
    """

    attack: Attack
    loss: OuterLoss
    weights: WeightPerturbation = field(default_factory=Unperturbed)
    averaging: Averaging = field(default_factory=LastWeights)
    regularizer: Regularizer = field(default_factory=Unregularized)
    attack_bn: AttackBn = "eval"
    curriculum: Curriculum = field(default_factory=StatelessCurriculum)

    @property
    def is_adversarial(self) -> bool:
        return self.attack.moves

    @property
    def is_single_step(self) -> bool:
        return self.attack.steps == 1

    @property
    def needs_labels(self) -> bool:
        return self.attack.needs_labels

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "MinMaxStep":
        return MinMaxStep(
            self,
            model,
            optimizer,
            rng,
            loss=self.loss.start(model, optimizer, rng),
            weights=self.weights.start(model),
            regularizer=self.regularizer.start(model),
            curriculum=self.curriculum.start(model),
        )


@dataclass(frozen=True)
class MinMaxStep:
    """A MinMax bound to a model; its state is that of its parts."""

    settings: MinMax
    model: nn.Module
    optimizer: Optimizer
    rng: Noise
    loss: RunningLoss
    weights: RunningPerturbation
    regularizer: RunningRegularizer
    curriculum: RunningCurriculum

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        attack = self.curriculum.attack(self.settings.attack, progress)
        # Before the attack, so that it can use the memory of the old gradients.
        self.optimizer.zero_grad()
        with crafting(self.model, self.settings.attack_bn):  # weights held, mode set, both restored
            x_adv, found = attack.search(self.model, x, labels.attack, threat, self.rng)
        batch = Batch(x, labels.loss, x_adv)
        self.loss.begin(batch, progress)
        penalty = add_penalty(self.regularizer, self.model, x, batch.y, progress)
        with self.weights.around(self.model, lambda: ranks.weighed(self.loss(self.model, batch)), progress):
            loss = self.loss(self.model, batch)
            ranks.weighed(loss).backward()  # type: ignore[no-untyped-call]
            if self.weights.steps_inside:
                self.optimizer.step()
        if not self.weights.steps_inside:
            self.optimizer.step()
        self.regularizer.after(self.model, progress)
        # Tensors, so that nothing waits for the device.
        metrics = ranks.metrics({"loss": loss.detach(), **found, **self.loss.metrics, **penalty})
        self.curriculum.see(metrics, ranks.images(len(x)))
        return {**metrics, **self.curriculum.metrics}

    @property
    def _parts(self) -> Mapping[str, RunningLoss | RunningPerturbation | RunningRegularizer | RunningCurriculum]:
        return {
            "loss": self.loss,
            "weights": self.weights,
            "regulariser": self.regularizer,  # as checkpoints of earlier versions spell it
            "curriculum": self.curriculum,
        }

    def state_dict(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Earlier versions kept the state of fw_at_adapt's curriculum next to that of the parts.
        earlier = {key: value for key, value in state.items() if key not in self._parts}
        for name, part in self._parts.items():
            part.load_state_dict(state.get(name, earlier if name == "curriculum" else {}))
