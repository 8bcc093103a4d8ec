"""DSARA: a search that trains the weights on half of the images and the architecture on the other half."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from robustcli.architectures.operations import OPERATIONS
from robustcli.architectures.supernet import Supernet
from robustcli.attacks.crafting import statistics_held
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, Metrics, OuterLoss
from robustcli.defenses.min_max import MinMax
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.optimization.weights.perturbed_weights import perturbed_weights
from robustcli.registry.types import AttackBn, NonNegative, Positive, Share, Steps
from robustcli.runtime import ranks
from robustcli.threat.noise import Noise

# Step of the weights to either side, all together, in finite differences.
_REACH = 0.01
# At the weights and alphas at the time of the call.
Loss = Callable[[], Tensor]


def natural_share(natural: Tensor, adversarial: Tensor) -> Tensor:
    """Return c in [0, 1] that minimizes |c natural + (1 - c) adversarial|, the common descent direction (MGDA).

    The shortest vector between two gradients lowers both losses, unless it is zero.
    """
    gap = natural - adversarial
    share: Tensor = -(gap @ adversarial) / (gap @ gap).clamp_min(torch.finfo(gap.dtype).tiny)
    return share.clamp(0, 1)


def unrolled_gradient(
    loss: Loss,
    train: Loss,
    alphas: Sequence[Tensor],
    weights: Sequence[Tensor],
    ahead: Sequence[Tensor],
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Return L(w', a) and its total gradient in a as one vector, where w' = w - rate dT(w, a)/dw also depends on a.

    dL(w', a)/da - rate [dT(w + e v, a)/da - dT(w - e v, a)/da] / (2 e), with v = dL(w', a)/dw' and e = 0.01 / |v|. The
    difference approximates the second derivative of T in a and w, times v.

    Args:
        loss: L.
        train: T.
        alphas: a.
        weights: w, restored at the end.
        ahead: dT/dw.
        rate: length of the step to w'.

    Reference: Liu, Simonyan and Yang, ICLR 2019, equations 7 and 8.
    """
    with perturbed_weights(weights, [-rate * part for part in ahead]):
        value = loss()
        grads = _gradients(value, [*alphas, *weights])
    direct, v = grads[: len(alphas)], grads[len(alphas) :]
    size = torch.stack([part.norm() for part in v]).norm()
    reach = _REACH / size.clamp_min(torch.finfo(size.dtype).tiny)
    sides = []
    for signed in (reach, -reach):
        with perturbed_weights(weights, [signed * part for part in v]):
            sides.append(_flat(_gradients(train(), alphas)))
    return value.detach(), _flat(direct) - rate * (sides[0] - sides[1]) / (2 * reach)


def _gradients(loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the loss over the whole batch, of which each process has a part."""
    return ranks.mean(torch.autograd.grad(ranks.weighed(loss), of))


def _flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in grads])


@dataclass(frozen=True, kw_only=True)
class SearchLoss(OuterLoss):
    """CE(f(x'), y) on the half of the batch for the weights; the other half updates the shares.

    The shares move first, once per update, along g = c g1 + (1 - c) g2: g1 is the gradient of the natural loss and g2
    that of `adversarial_weight` times the adversarial loss; c is 0 in the first stage, then `natural_share`. In second
    order, both are gradients of losses at weights after one step along this loss.
    """

    order: Literal["first", "second"]
    first_stage: float
    adversarial_weight: float
    alpha_lr: float
    alpha_weight_decay: float

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "RunningSearch":
        supernets = [module for module in model.modules() if isinstance(module, Supernet)]
        if not supernets:
            raise RobustCliError("this network has no shares to search for; write architecture: {name: dsara, ...}")
        alphas = [alpha for alpha in supernets[0].alphas.values() if alpha.requires_grad]
        # Without requires_grad, so that nothing that trains, perturbs or regularizes weights changes them.
        for alpha in alphas:
            alpha.requires_grad_(False)
        adam = Adam(alphas, lr=self.alpha_lr, betas=(0.5, 0.999), weight_decay=self.alpha_weight_decay)
        return RunningSearch(self, model, supernets[0], alphas, adam, optimizer)


class RunningSearch:
    """A SearchLoss with its state.

    Args:
        alphas: logits of the shares.
        optimizer: optimizer of the alphas.
        of_weights: optimizer of all other parameters.
    """

    def __init__(
        self,
        settings: SearchLoss,
        model: nn.Module,
        supernet: Supernet,
        alphas: Sequence[nn.Parameter],
        optimizer: Adam,
        of_weights: Optimizer,
    ) -> None:
        self.settings, self.model, self.supernet = settings, model, supernet
        self.alphas, self.optimizer, self.of_weights = alphas, optimizer, of_weights
        self.metrics: Metrics = {}

    def begin(self, batch: Batch, progress: Progress) -> None:
        x, x_adv, y = (part[1::2] for part in (batch.x, batch.x_adv, batch.y))
        looks_ahead = self.settings.order == "second"
        # Batch statistics must come from the trained weights, not from trial weights.
        with _learned(self.alphas), statistics_held(self.model) if looks_ahead else nullcontext():
            gradient = self._unrolled(batch) if looks_ahead else self._gradient
            weight = self.settings.adversarial_weight
            adversarial, direction = gradient(lambda: F.cross_entropy(self.model(x_adv), y), weight)
            share = torch.zeros_like(adversarial)
            if progress.share >= self.settings.first_stage:
                _, natural = gradient(lambda: F.cross_entropy(self.model(x), y), 1.0)
                share = natural_share(natural, direction)
                direction = share * natural + (1 - share) * direction
            # After an overflow in fp16 the shares only follow their momentum and decay, as the weights do.
            is_finite = direction.isfinite().all()
            direction, share = torch.where(is_finite, direction, 0), torch.where(is_finite, share, 0)
            parts = torch.split(direction, [alpha.numel() for alpha in self.alphas])
            for alpha, part in zip(self.alphas, parts, strict=True):
                alpha.grad = part.view_as(alpha)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.metrics = {
            "alpha_loss": adversarial,
            "natural_share": share.detach(),
            "skip_share": self._share_of("skip"),
        }

    def _gradient(self, loss: Loss, weight: float) -> tuple[Tensor, Tensor]:
        """Return a loss, and the gradient of `weight` times that loss in all alphas, as one vector."""
        value = loss()
        return value.detach(), _flat(_gradients(weight * value, self.alphas))

    def _unrolled(self, batch: Batch) -> Callable[[Loss, float], tuple[Tensor, Tensor]]:
        """The same at weights after one step of plain gradient descent."""
        alphas = set(self.alphas)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad and weight not in alphas]
        rate = self.of_weights.param_groups[0]["lr"]

        def train() -> Tensor:
            return self(self.model, batch)

        ahead = _gradients(train(), weights)

        def gradient(loss: Loss, weight: float) -> tuple[Tensor, Tensor]:
            value, grad = unrolled_gradient(loss, train, self.alphas, weights, ahead, rate)
            return value, weight * grad

        return gradient

    def _share_of(self, operation: str) -> Tensor:
        """Mean share of an operation over all edges."""
        number = list(OPERATIONS).index(operation)
        return torch.cat([shares[:, number].detach() for shares in self.supernet.shares().values()]).mean()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.x_adv[::2]), batch.y[::2])

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])


@contextmanager
def _learned(alphas: Sequence[nn.Parameter]) -> Iterator[None]:
    """Enable gradients of the alphas inside the context."""
    for alpha in alphas:
        alpha.requires_grad_(True)
    try:
        yield
    finally:
        for alpha in alphas:
            alpha.requires_grad_(False)


@DEFENSES.register(
    "dsara",
    trains="dsara",
    two_halves=True,
    spans_training=True,
    added={"order": "first"},
    smoke={"steps": 2},
    passes=(8, 7, 0.5),
)
def dsara(
    *,
    order: Literal["first", "second"] = "first",
    first_stage: Share = 0.4,
    adversarial_weight: Positive = 0.1,
    alpha_lr: Positive = 3e-4,
    alpha_weight_decay: NonNegative = 1e-3,
    steps: Steps = 7,
    step_size: Positive | None = None,
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Search for an accurate and robust architecture: adversarial training of a supernet and its operation shares.

    Trains the architecture of the same name. The training images are split into two fixed halves; every batch contains
    both. One half updates the weights with the adversarial loss. The other updates the shares of the operations with
    Adam: in a first stage by the adversarial loss, then along the common descent direction of the natural and the
    weighted adversarial loss. Both halves are attacked together, before the shares move. As published (order: second),
    the gradient of the shares looks one step of the weights ahead, without momentum and weight decay. The two stages
    are in the paper's abstract; their equations come from the successor ARNAS, and the length of the first stage from a
    disabled branch of its code. Every pass that trains something updates batch statistics; in second order only the
    passes of the weights. The search is known to fail by choosing skip everywhere: the training record shows
    skip_share, which starts at one seventh. In this case search for fewer epochs.

    When to use: to search for a cell under adversarial training; then train the network that it finds.

    First setting: 50 epochs with order: first and the architecture dsara; then train the derived spec that the run
    writes.

    Args:
        order: derivative of the losses in the shares: "first" holds the weights fixed; "second", as published, looks
            one step ahead along the adversarial loss of the weights. This takes seven passes of the half batch instead
            of two, and four instead of one in the first stage.
        first_stage: share of the run in which only the adversarial loss updates the shares; 20 of 50 epochs.
        adversarial_weight: weight of the adversarial loss next to the natural one. The common direction favors the
            shorter of two gradients, so a small weight favors this loss.
        alpha_lr: constant learning rate of the alphas, the logits of the shares.
        alpha_weight_decay: weight decay of the alphas.
        step_size: length of one step in the unit of eps; null is a quarter of eps (2/255 for 8/255, as published).

    Reference: Ou et al., arXiv 2212.14049; Ou, Feng and Sun, CVPR 2024; common direction: Desideri, Comptes
        Rendus Mathematique, 2012.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size),
        loss=SearchLoss(
            order=order,
            first_stage=first_stage,
            adversarial_weight=adversarial_weight,
            alpha_lr=alpha_lr,
            alpha_weight_decay=alpha_weight_decay,
        ),
        attack_bn=attack_bn,
    )
