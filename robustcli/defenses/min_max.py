"""The step that most published methods share: the formula of adversarial training, line by line."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks import Attack, ReportingAttack, takes_one_step
from robustcli.attacks.crafting import crafting
from robustcli.attacks.none import NoAttack
from robustcli.data.targets import Labels
from robustcli.defenses import Batch, Metrics, OuterLoss, RunningLoss, StatefulLoss
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularisers import Regulariser, RunningRegulariser, add_penalty
from robustcli.optimization.regularisers.none import Unregularised
from robustcli.optimization.weights import WeightPerturbation
from robustcli.optimization.weights.none import Unperturbed
from robustcli.registry.types import AttackBn
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class AdversarialCrossEntropy:
    """CE(f(x'), y), mean over the batch: what most methods that differ in their attack minimise."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x_adv), batch.y)


class Curriculum(Protocol):
    """How the parts change as training goes on."""

    def __call__(self, game: "MinMax", progress: Progress) -> "MinMax":
        """What is played at one update, made from the parts as they are set."""
        ...


class RunningCurriculum(Curriculum, Protocol):
    """A curriculum at work that goes by how training went so far, and keeps what it has seen of it."""

    @property
    def metrics(self) -> Metrics:
        """What it decided for this update; the same names every time."""
        ...

    def see(self, metrics: Metrics, images: int) -> None:
        """An update of so many images is made; its metrics are tensors on the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is kept, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@runtime_checkable
class StatefulCurriculum(Protocol):
    """Settings of a curriculum that has to be started, because it keeps something between updates."""

    def start(self, model: nn.Module) -> RunningCurriculum:
        """Begin to watch the training of a model."""
        ...


def unchanging(game: "MinMax", progress: Progress) -> "MinMax":
    """The parts stay as they are set."""
    return game


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """min over w of E loss(w + v, x, x_adv, y) + r(w), with x_adv from `attack`, v from `weights`.

    Args:
        attack: finds x_adv at the unperturbed weights.
        loss: what the weights minimise; one that keeps something between updates is started with the training.
        weights: the perturbation v around which the loss is taken.
        averaging: which weights are evaluated.
        regulariser: r, what is asked of the weights beside the loss.
        attack_bn: mode of the model while it is attacked: "eval" (running statistics), "train" (batch
            statistics, running ones move with every forward) or "batch_no_update".
        curriculum: how attack and loss change as training goes on.
    """

    attack: Attack
    loss: OuterLoss | StatefulLoss
    weights: WeightPerturbation = field(default_factory=Unperturbed)
    averaging: Averaging = field(default_factory=LastWeights)
    regulariser: Regulariser = field(default_factory=Unregularised)
    attack_bn: AttackBn = "eval"
    curriculum: Curriculum | StatefulCurriculum = unchanging

    @property
    def is_adversarial(self) -> bool:
        return not isinstance(self.attack, NoAttack)

    @property
    def is_single_step(self) -> bool:
        return takes_one_step(self.attack)

    @property
    def replays(self) -> int:
        return 1

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "MinMaxStep":
        running = self.loss.start(model, optimizer, rng) if isinstance(self.loss, StatefulLoss) else None
        planner = self.curriculum.start(model) if isinstance(self.curriculum, StatefulCurriculum) else None
        return MinMaxStep(self, model, optimizer, rng, running, self.regulariser.start(model), planner)


@dataclass(frozen=True)
class MinMaxStep:
    """A MinMax bound to a model; what it keeps between updates is what its parts keep.

    Args:
        running: the loss at work, if it is one that had to be started.
        regulariser: at work.
        planner: the curriculum at work, if it is one that had to be started.
    """

    settings: MinMax
    model: nn.Module
    optimizer: Optimizer
    rng: Noise
    running: RunningLoss | None
    regulariser: RunningRegulariser
    planner: RunningCurriculum | None

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        game = self._planned(progress)
        with crafting(self.model, game.attack_bn):  # weights held, mode set, both restored
            x_adv, found = _searched(game.attack, self.model, x, labels.attack, threat, self.rng)
        batch = Batch(x, labels.loss, x_adv)
        loss_of = self._begun(game, batch, progress)
        self.optimizer.zero_grad()
        asked = add_penalty(self.regulariser, self.model, x, batch.y, progress)
        with game.weights.around(self.model, lambda: loss_of(self.model, batch), progress):
            loss = loss_of(self.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            if game.weights.steps_inside:
                self.optimizer.step()
        if not game.weights.steps_inside:
            self.optimizer.step()
        self.regulariser.after(self.model, progress)
        said = {} if self.running is None else self.running.metrics
        metrics = {"loss": loss.detach(), **found, **said, **asked}  # tensors: no wait for the device here
        if self.planner is None:
            return metrics
        self.planner.see(metrics, len(x))
        return {**metrics, **self.planner.metrics}

    def _planned(self, progress: Progress) -> MinMax:
        """What is played at this update."""
        if self.planner is not None:
            return self.planner(self.settings, progress)
        assert not isinstance(self.settings.curriculum, StatefulCurriculum)
        return self.settings.curriculum(self.settings, progress)

    def _begun(self, game: MinMax, batch: Batch, progress: Progress) -> OuterLoss:
        """The loss of this update."""
        if self.running is not None:
            self.running.begin(batch, progress)
            return self.running
        assert not isinstance(game.loss, StatefulLoss)
        return game.loss

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self.running is None else {"loss": self.running.state_dict()}
        if self.planner is not None:
            kept["curriculum"] = self.planner.state_dict()
        asked = self.regulariser.state_dict()
        return {**kept, "regulariser": asked} if asked else kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.running is not None:
            self.running.load_state_dict(state["loss"])
        if self.planner is not None:
            self.planner.load_state_dict(state["curriculum"])
        if "regulariser" in state:
            self.regulariser.load_state_dict(state["regulariser"])


def _searched(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
) -> tuple[Tensor, Metrics]:
    """What the attack found, and what it has to say about it."""
    if isinstance(attack, ReportingAttack):
        return attack.search(model, x, y, threat, rng)
    return attack(model, x, y, threat, rng), {}
