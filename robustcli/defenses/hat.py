"""HAT: TRADES with a helper network that labels images beyond the adversarial one."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks.losses import kl_divergence, labels_of
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, Metrics, OuterLoss
from robustcli.defenses.min_max import MinMax
from robustcli.errors import RobustCliError
from robustcli.optimization.clipping import clip_again
from robustcli.optimization.progress import Progress
from robustcli.optimization.rates import copy_rates
from robustcli.registry.types import AttackBn, NonNegative, Positive, StartStd, Steps, StepSize
from robustcli.runtime import ranks
from robustcli.runtime.precision import SkippedUpdates
from robustcli.store.checkpoint import Checkpoint
from robustcli.threat.noise import Noise

_BESIDE = "beside"


@dataclass(frozen=True, kw_only=True)
class HatLoss(OuterLoss):
    """CE(f(x), y) + beta KL(p(x) || p(x')) + helper_weight CE(f(x + h (x' - x)), y_h), mean over the batch.

    y_h is the helper's prediction at x'; h is `extrapolation`. The point beyond x' is not clipped to [0, 1].
    """

    beta: float
    helper_weight: float
    extrapolation: float
    helper: str

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "RunningHat":
        if self.helper == _BESIDE:
            # Copied together, so that the copied optimizer trains the copied weights; hooks are not copied.
            helper, follower = deepcopy((model, optimizer))
            SkippedUpdates(follower)
            clip_again(follower, helper)
            return RunningHat(self, optimizer, helper, follower)
        running = RunningHat(self, optimizer, deepcopy(model).requires_grad_(False).eval(), None)
        try:
            _load(running.helper, Path(self.helper))
        except RobustCliError as error:
            # A resumed run has its helper in the checkpoint, and the file may be gone.
            running.missing = error
        return running


def _load(helper: nn.Module, path: Path) -> None:
    """Load weights of a checkpoint of the same architecture, with any wrapper around the network."""
    weights = Checkpoint.read(path).weights
    networks = [module for module in helper.modules() if module.state_dict().keys() == weights.keys()]
    try:
        if not networks:
            raise RuntimeError("its weights have other names")
        networks[0].load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RobustCliError(
            f"defense.helper: {path}: expected a checkpoint with the architecture of this spec ({reason})"
        ) from error


class RunningHat:
    """A HatLoss with its helper.

    Args:
        leader: the network's optimizer; a helper that is trained at the same time uses its learning rate.
        helper: the other network; this loss gives it no gradient.
        optimizer: optimizer of a helper that is trained at the same time, or None.
        missing: error of reading the helper, raised when it is used or saved; None if there is a helper.
    """

    missing: RobustCliError | None = None

    def __init__(self, settings: HatLoss, leader: Optimizer, helper: nn.Module, optimizer: Optimizer | None) -> None:
        self.settings, self.leader, self.helper, self.optimizer = settings, leader, helper, optimizer
        self.labels = torch.empty(0, dtype=torch.int64)
        self.metrics: Metrics = {}

    def _require_helper(self) -> None:
        if self.missing is not None:
            raise self.missing

    def begin(self, batch: Batch, progress: Progress) -> None:
        self._require_helper()
        if not self.settings.helper_weight:
            return
        if self.optimizer is not None:
            self._train_helper(self.optimizer, batch)
        self.helper.eval()
        with torch.no_grad():
            self.labels = self.helper(batch.x_adv).argmax(1)
        self.metrics = {"helper_accuracy": (self.labels == labels_of(batch.y)).float().mean()}

    def _train_helper(self, optimizer: Optimizer, batch: Batch) -> None:
        """Make one natural update of the helper, with the network's learning rate and momentum."""
        copy_rates(self.leader, optimizer)
        self.helper.train()
        optimizer.zero_grad()
        ranks.weighed(F.cross_entropy(self.helper(batch.x), batch.y)).backward()  # type: ignore[no-untyped-call]
        # Before the step, whose hook looks for overflow in the gradients of the whole batch.
        ranks.mean_gradients(optimizer)
        optimizer.step()
        ranks.mean_statistics(self.helper)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        settings = self.settings
        logits = model(batch.x)
        loss = F.cross_entropy(logits, batch.y)
        if settings.beta:
            loss = loss + settings.beta * kl_divergence(model(batch.x_adv), logits.log_softmax(1)).mean()
        if settings.helper_weight:
            beyond = batch.x + settings.extrapolation * (batch.x_adv - batch.x)
            loss = loss + settings.helper_weight * F.cross_entropy(model(beyond), self.labels)
        return loss

    def state_dict(self) -> dict[str, Any]:
        self._require_helper()
        state = {"helper": self.helper.state_dict()}
        return state if self.optimizer is None else {**state, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.helper.load_state_dict(state["helper"])
        self.missing = None
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


@DEFENSES.register("hat", smoke={"steps": 2}, passes=(16, 10, 4))
def hat(
    *,
    helper: str = "beside",
    beta: NonNegative = 2.5,
    helper_weight: NonNegative = 0.5,
    extrapolation: Positive = 2.0,
    steps: Steps = 10,
    step_size: StepSize = None,
    start_std: StartStd = 0.001,
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """TRADES plus the cross-entropy at an image beyond the adversarial one, with the label that a helper predicts.

    The helper is a naturally trained network of the same architecture. If it assigns the adversarial image to another
    class, the image beyond may belong to that class, and the margin need not grow further. Batch statistics see the
    clean, the adversarial and the extrapolated batch once each; p(x) in the divergence is not detached, as released.

    When to use: where adversarial training loses too much clean accuracy, at about the cost of TRADES.

    First setting: the defaults with helper: beside. For the published method, train the helper first.

    Args:
        helper: a checkpoint of a naturally trained network (experiments/cifar10/hat_helper.yaml), as in the paper; or
            "beside": a copy of the network is trained naturally on the same batches by a copy of its optimizer. This
            saves the first run and costs one more forward and backward; its labels are poor at first. "beside" is our
            own variant.
        beta: weight of the divergence: 2.5, and 3.5 with extra data, as released.
        helper_weight: gamma, the weight of the third term; 0 is TRADES.
        extrapolation: h, how far beyond: 1 is the adversarial image itself.

    Reference: Rade and Moosavi-Dezfooli, ICLR 2022.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start="gaussian", start_std=start_std, loss="kl"),
        loss=HatLoss(beta=beta, helper_weight=helper_weight, extrapolation=extrapolation, helper=helper),
        attack_bn=attack_bn,
    )
