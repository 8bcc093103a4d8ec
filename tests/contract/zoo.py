"""Members with one fault each; the contract must refuse all of them (see test_zoo.py)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from robustcli.attacks import Attack
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.pgd import Pgd
from robustcli.data.targets import Labels
from robustcli.defenses import Defense, Metrics
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.optimization.averaging import Averaging, CleanImages
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.stateless import Stateless
from robustcli.optimization.weights.awp import Awp
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

# Attacks.


@dataclass(frozen=True)
class LeavesTheBall(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return Fgsm()(model, x, y, ThreatModel(threat.norm, threat.eps * Fraction(102, 100)), rng)


@dataclass(frozen=True)
class LeavesTheBox(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return x + threat.radius / x[0].numel()


@dataclass(frozen=True)
class ReturnsNan(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return torch.full_like(x, torch.nan)


@dataclass(frozen=True)
class WritesIntoItsInput(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return x.copy_(Fgsm()(model, x, y, threat, rng))


@dataclass(frozen=True)
class MovesAtRadius0(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return (x + 1e-7 + 0.5 * threat.radius / x[0].numel()).clamp(0, 1)


@dataclass(frozen=True)
class ForgetsTheMode(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        model.eval()
        return Fgsm()(model, x, y, threat, rng)


@dataclass(frozen=True)
class RestoresTheModeUnlessItFails(Attack):
    """Leaves train mode on when the model fails, unless it is called inside `crafting`."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        modes = [(module, module.training) for module in model.modules()]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train()
        x_adv = Fgsm()(model, x, y, threat, rng)
        for module, mode in modes:
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        return x_adv


@dataclass(frozen=True)
class FillsGradients(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        cross_entropy(model(x.clone().requires_grad_()), y).backward()
        return Fgsm()(model, x, y, threat, rng)


@dataclass(frozen=True)
class FreezesTheWeights(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        model.requires_grad_(False)
        return Fgsm()(model, x, y, threat, rng)


@dataclass(frozen=True)
class MovesStatistics(Attack):
    """Runs a forward in train mode before it attacks."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        modes = [(module, module.training) for module in model.modules()]
        model.train()
        with torch.no_grad():
            model(x)
        for module, mode in modes:
            module.training = mode
        return Fgsm()(model, x, y, threat, rng)


@dataclass(frozen=True)
class AttacksHalfOfTheBatch(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        half = len(x) // 2
        return torch.cat([Fgsm()(model, x[:half], y[:half], threat, rng), x[half:]])


@dataclass(frozen=True)
class SharesOneDirection(Attack):
    """One perturbation for the whole batch."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        delta = Fgsm()(model, x, y, threat, rng) - x
        return threat.project(x + delta.mean(0, keepdim=True), x)


@dataclass(frozen=True)
class DrawsGlobally(Attack):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return threat.project(x + torch.rand_like(x), x)


@dataclass(frozen=True)
class IgnoresClassShares(Attack):
    """Replaces class shares by the first class."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return Fgsm()(model, x, y if y.dim() == 1 else torch.zeros(len(y), dtype=torch.int64), threat, rng)


@dataclass(frozen=True, kw_only=True)
class HasDeadOptions(Attack):
    """Two of its three starts are equal, and `restarts` is ignored.

    Args:
        start: where it begins.
        restarts: tries.

    Reference: none.
    """

    start: Literal["random", "clean", "corner"] = "random"
    restarts: int = 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return Pgd(steps=3, start="clean" if self.start == "clean" else "random")(model, x, y, threat, rng)


# Defenses. Each is plain training with one fault.


@dataclass
class Trained:
    """Plain training; the broken ones change one line of it."""

    model: nn.Module
    optimizer: Optimizer
    rng: Noise

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(x), labels.loss)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class TrainsInEvalMode(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        self.model.eval()
        return super().__call__(x, labels, threat, progress)


class RestoresModesUnlessItFails(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        metrics = super().__call__(x, labels, threat, progress)
        for module, mode in modes:
            module.training = mode
        return metrics


class SetsEveryModuleToTrain(Trained):
    """Sets held batch norms back to train mode."""

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        metrics = super().__call__(x, labels, threat, progress)
        self.model.train()
        return metrics


class KeepsEarlierGradients(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        loss = cross_entropy(self.model(x), labels.loss)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class StepsTwice(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        super().__call__(x, labels, threat, progress)
        return super().__call__(x, labels, threat, progress)


class NeverSteps(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        return {"loss": cross_entropy(self.model(x), labels.loss).detach()}


class TrainsTheLastLayerAlone(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        self.optimizer.zero_grad()
        *_, last = self.model.parameters()
        loss = cross_entropy(self.model(x), labels.loss)
        (last.grad,) = torch.autograd.grad(loss, last)
        self.optimizer.step()
        return {"loss": loss.detach()}


class StepsBeforeItFails(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        super().__call__(x, labels, threat, progress)
        return {"loss": cross_entropy(self.model(x), labels.loss).detach()}


class ReportsTheGraph(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        return {
            "loss": cross_entropy(self.model(x), labels.loss) + super().__call__(x, labels, threat, progress)["loss"]
        }


class DrawsFromItsOwnGenerator(Trained):
    generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        return super().__call__(x + 0.1 * torch.rand(x.shape, generator=self.generator), labels, threat, progress)


class SmoothsNothing(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        return super().__call__(x, Labels.of(labels.attack), threat, progress)


class SmoothsItsAttackToo(Trained):
    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        x_adv = Fgsm()(self.model, x, labels.loss, threat, self.rng)
        return super().__call__(x_adv, labels, threat, progress)


class ForgetsItsState(Trained):
    """Trains on the sum of all batches so far, which is not in the checkpoint."""

    seen: float | Tensor = 0.0

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        self.seen = self.seen + x
        return super().__call__(torch.as_tensor(self.seen), labels, threat, progress)


@dataclass(frozen=True)
class Training(Defense):
    """The settings of a `Trained`."""

    step: type[Trained] = Trained
    averaging: Averaging = field(default_factory=LastWeights)
    is_adversarial: bool = False
    is_single_step: bool = False
    replays: int = 1

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> Trained:
        return self.step(model, optimizer, rng)


# Weight perturbations.


@dataclass(frozen=True)
class DoesNotRestore(Stateless):
    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        yield


@dataclass(frozen=True)
class RestoresUnlessItFails(Stateless):
    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        before = deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        yield
        model.load_state_dict(before)


@dataclass(frozen=True)
class RestoresByRounding(Stateless):
    """w + v - v is not always w."""

    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        shares = [0.0123 * parameter.detach() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter, share in zip(model.parameters(), shares, strict=True):
                parameter.add_(share)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, share in zip(model.parameters(), shares, strict=True):
                    parameter.sub_(share)


@dataclass(frozen=True)
class UndoesTheUpdate(Stateless):
    """Restores the old weights and so undoes steps of the optimizer."""

    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with Awp().around(model, loss, progress):
            yield
        with torch.no_grad():
            for parameter, then in zip(model.parameters(), before, strict=True):
                parameter.copy_(then)


@dataclass(frozen=True)
class CountsStatisticsTwice(Stateless):
    """Evaluates the loss once more and so changes batch-norm statistics."""

    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        loss()
        with Awp().around(model, loss, progress):
            yield


@dataclass(frozen=True)
class DoesNothing(Stateless):
    @contextmanager
    def around(self, model: nn.Module, loss: Callable[[], Tensor], progress: Progress) -> Iterator[None]:
        yield


# Averages.


class Mean:
    """The plain mean of all weights; the broken ones change one thing about it."""

    def __init__(self, model: nn.Module) -> None:
        self.network = deepcopy(model).eval()
        self.updates = 0

    def update(self, model: nn.Module, progress: Progress) -> None:
        self.updates += 1
        with torch.no_grad():
            for own, live in zip(self.network.parameters(), model.parameters(), strict=True):
                own.lerp_(live, 1 / self.updates)

    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        with torch.no_grad():
            for own, live in zip(self.network.buffers(), model.buffers(), strict=True):
                own.copy_(live)
        return self.network

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]


class AliasesBuffers(Mean):
    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        for own, live in zip(self.network.modules(), model.modules(), strict=True):
            own._buffers = live._buffers
        return self.network


class AliasesWeights(Mean):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.network = copy(model)


class WritesTheAverageIntoTheModel(Mean):
    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        model.load_state_dict(super().averaged(model, images).state_dict())
        return self.network


class PutsTheModelIntoEvalMode(Mean):
    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        model.eval()
        return super().averaged(model, images)


class CountsLookingAsAnUpdate(Mean):
    def averaged(self, model: nn.Module, images: CleanImages) -> nn.Module:
        self.updates += 1
        return super().averaged(model, images)


class ForgetsHowManyItTookIn(Mean):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])


class ShrinksTheWeights(Mean):
    def update(self, model: nn.Module, progress: Progress) -> None:
        super().update(model, progress)
        with torch.no_grad():
            for own in self.network.parameters():
                own.mul_(0.999)


@dataclass(frozen=True)
class Averaged:
    """The settings of a `Mean`."""

    running: type[Mean] = Mean

    def start(self, model: nn.Module) -> Mean:
        return self.running(model)


# Schedules, as functions of the progress.


def goes_below_0(progress: Progress) -> float:
    return 1 - 1.1 * progress.share


def goes_above_1(progress: Progress) -> float:
    return 1 + progress.share


def is_undefined_at_the_end(progress: Progress) -> float:
    is_last = progress.step + 1 == progress.steps_per_epoch * progress.epochs
    return math.nan if is_last else 0.5


class RemembersItsCalls:
    calls = 0

    def __call__(self, progress: Progress) -> float:
        self.calls += 1
        return 1 / self.calls


# Architectures.


class Body(nn.Module):
    """A linear classifier; the broken ones change one thing about it."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


class SeesTheWholeBatch(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class GivesProbabilities(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class GivesNanInEvalMode(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if self.training else torch.nan)


class HasAnUnusedWeight(Body):
    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__(pixels, classes)
        self.spare = nn.Parameter(torch.ones(1))


class CutsAGradient(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0 + self.layer.bias


class StartsFromTheClock(Body):
    starts = 0

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__(pixels, classes)
        StartsFromTheClock.starts += 1
        with torch.no_grad():
            self.layer.bias.fill_(self.starts)


# Evaluators.


@dataclass(frozen=True)
class NamesTwoStagesAlike(Evaluator):
    """Two of its stages have the same name."""

    batch_size: int = 4

    def stages(self, case: AttackContext) -> list[Stage]:
        return [Stage(name="pgd", attack=attack, noise="pgd") for attack in (Fgsm(), Pgd(steps=1))]


@dataclass(frozen=True)
class AttacksWhatItFeelsLike(Evaluator):
    """Returns different stages on every call."""

    batch_size: int = 4
    asked: list[int] = field(default_factory=list)

    def stages(self, case: AttackContext) -> list[Stage]:
        self.asked.append(1)
        return [Stage(name="fgsm", attack=Fgsm(), noise="fgsm")][len(self.asked) % 2 :]


@dataclass(frozen=True)
class ForgetsItsBatchSize(Evaluator):
    """Passes all images at once and ignores the batch size."""

    batch_size: int = 2

    def stages(self, case: AttackContext) -> list[Stage]:
        return [Stage(name="fgsm", attack=Fgsm(), noise="fgsm", batch_size=None)]


# Diagnostics.


@dataclass(frozen=True)
class FindsNan:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return {"share": math.nan}


@dataclass(frozen=True)
class FindsTensors:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return {"share": torch.zeros(2).mean()}


@dataclass(frozen=True)
class FindsPercent:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return {"rows": [{"accuracy": 50.0}]}


@dataclass(frozen=True)
class FindsAnUnsortedCurve:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return {"curve": [{"eps": 1.0, "accuracy": 0.5}, {"eps": 0.5, "accuracy": 0.5}]}


@dataclass(frozen=True)
class FindsByChance:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return {"share": float(torch.rand(()))}


@dataclass(frozen=True)
class LeavesTheWeightsMoved:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        return {}


@dataclass(frozen=True)
class ForgetsItsHookWhenItFails:
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        hook = model.register_forward_hook(lambda _module, _inputs, _output: None)
        model(x)
        hook.remove()
        return {}


@dataclass(frozen=True)
class LooksAtTheFirstBatch:
    batch_size: int = 250

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        return {"mean": float(x[: self.batch_size].mean())}
