"""Free adversarial training: one backward serves the weights and the perturbation."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.data.targets import Labels
from robustcli.defenses import DEFENSES, Defense, Metrics
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import Regularizer, RunningRegularizer, add_penalty
from robustcli.optimization.regularizers.none import Unregularized
from robustcli.registry.types import Count, Positive
from robustcli.runtime import ranks
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@DEFENSES.register("free", goes_farther=True, smoke={"replays": 2}, passes=(1, 0, 1))
@dataclass(frozen=True, kw_only=True)
class Free(Defense):
    """Cross-entropy at x + delta, where delta takes one sign step for each step of the weights.

    Both steps use the gradient of one backward at the old weights and the old delta. Delta is zero only at the start
    of the run: a new batch starts with the delta of the previous one, and a smaller last batch updates a part of it.
    Delta is projected onto the ball and x + delta clipped to [0, 1]. Every batch is used `replays` times in a row. An
    epoch remains one pass over the images, so for the number of updates of natural training divide the epochs by
    `replays`; schedules and averages count updates. Delta always maximizes the loss of the training labels, even if
    data.smoothing_for asks for unsmoothed labels in attacks, because there is only one backward. Batch statistics are
    updated by every forward. There is no separate attack, and it cannot be combined with a weight perturbation.

    When to use: where adversarial training must cost about as much as natural training with the same number of
    updates.

    First setting: replays 8 with an eighth of the usual epochs, and no averaging that counts epochs.

    Args:
        replays: m, updates on each batch.
        step_size: length of one step of delta in the unit of eps; null (as published) is eps.
        averaging: rule for the weights that are evaluated.
        regularizer: r, a penalty on the weights or a projection, at every update.

    Reference: Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019.
    """

    replays: Count = 8
    step_size: Positive | None = None
    averaging: Averaging = field(default_factory=LastWeights)
    regularizer: Regularizer = field(default_factory=Unregularized)

    is_single_step = True

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "FreeStep":
        return FreeStep(self, model, optimizer, self.regularizer.start(model))


@dataclass
class FreeStep:
    """Free training bound to a model.

    Args:
        delta: one perturbation per position in the batch, kept from batch to batch; None before the first batch.
    """

    settings: Free
    model: nn.Module
    optimizer: Optimizer
    regularizer: RunningRegularizer
    delta: Tensor | None = None

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        count = ranks.images(len(x))
        if self.delta is None:
            self.delta = x.new_zeros(count, *x.shape[1:])
        assert count <= len(self.delta), "only the last batch of an epoch is smaller, and none is larger"
        delta = ranks.own(self.delta[:count]).clone().requires_grad_()
        x_adv = (x + delta).clamp(0, 1)
        loss = F.cross_entropy(self.model(x_adv), labels.loss)
        self.optimizer.zero_grad()
        penalized = add_penalty(self.regularizer, self.model, x, labels.loss, progress)
        ranks.weighed(loss).backward()  # type: ignore[no-untyped-call]
        assert delta.grad is not None
        step_size = threat.radius if self.settings.step_size is None else self.settings.step_size
        with torch.no_grad():
            moved = delta + threat.ascent(delta.grad, x_adv, step_size)
            # The whole batch in every process: slices of a smaller batch have other positions.
            self.delta[:count] = ranks.gathered(threat.bound(moved, threat.radius))
        self.optimizer.step()
        self.regularizer.after(self.model, progress)
        return ranks.metrics({"loss": loss.detach(), **penalized})

    def state_dict(self) -> dict[str, Any]:
        asked = self.regularizer.state_dict()
        # As checkpoints of earlier versions spell it.
        return {"delta": self.delta, **({"regulariser": asked} if asked else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "regulariser" in state:
            self.regularizer.load_state_dict(state["regulariser"])
        delta = state["delta"]
        self.delta = None if delta is None else delta.to(next(self.model.parameters()).device)
