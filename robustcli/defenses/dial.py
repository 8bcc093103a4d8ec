"""DIAL: features that do not reveal whether an image is natural or adversarial."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.architectures.features import classifier_of, with_features
from robustcli.attacks.losses import kl_divergence
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, Metrics, OuterLoss
from robustcli.defenses.min_max import MinMax
from robustcli.optimization.progress import Progress
from robustcli.registry.types import AttackBn, NonNegative, Positive, StartStd, Steps
from robustcli.threat.noise import Noise


class Reversal(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -strength (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -ctx.strength * grads[0], None


def domain_head(inputs: int, hidden: tuple[int, ...], head_norm: bool, like: Tensor, rng: Noise) -> nn.Sequential:
    """Linear layers from features to two logits (natural, adversarial), with the device and dtype of `like`.

    Weights are uniform within 1 / sqrt(inputs of the layer), biases 0. Batch norms of the head keep no running
    statistics, because the head is only used in training.
    """
    place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}

    def linear(inputs: int, outputs: int) -> nn.Linear:
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, **place)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            layer.weight.copy_((2 * rng.uniform(layer.weight) - 1) / math.sqrt(inputs))
            layer.bias.zero_()
        return layer

    layers: list[nn.Module] = []
    for width in hidden:
        norm = [nn.BatchNorm1d(width, track_running_stats=False, **place)] if head_norm else []
        layers += [linear(inputs, width), *norm, nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, linear(inputs, 2))


@dataclass(frozen=True, kw_only=True)
class DialLoss(OuterLoss):
    """CE(f(x), y) + beta R + domain_weight [CE(D(h(x)), natural) + CE(D(h(x')), adversarial)], mean over the batch.

    R is KL(p(x) || p(x')) or CE(f(x'), y), h are the features and D is the head. D learns to distinguish the domains;
    the network gets the reversed gradient of D and learns to make them indistinguishable.
    """

    base: Literal["kl", "ce"]
    beta: float
    domain_weight: float
    hidden: tuple[int, ...]
    head_norm: bool
    reversal: Literal["epoch", "update"]

    def strength(self, progress: Progress) -> float:
        """2 / (1 + exp(-10 p)) - 1, with p the completed share of the training."""
        share = (int(progress.epoch) + 1) / progress.epochs if self.reversal == "epoch" else progress.share
        return 2 / (1 + math.exp(-10 * share)) - 1

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "RunningDial":
        layer = classifier_of(model)
        head = domain_head(layer.in_features, self.hidden, self.head_norm, layer.weight, rng)
        # Same weight decay as the network's first group: the released head is part of the network.
        decay = optimizer.param_groups[0]["weight_decay"]
        optimizer.add_param_group({"params": list(head.parameters()), "weight_decay": decay})
        return RunningDial(self, head)


class RunningDial:
    """A DialLoss with its head.

    Args:
        head: from features to two logits; trained by the network's optimizer.
        strength: strength of the reversal at the current update.
    """

    def __init__(self, settings: DialLoss, head: nn.Sequential) -> None:
        self.settings, self.head = settings, head
        self.strength = 0.0
        self.metrics: Metrics = {}

    def begin(self, batch: Batch, progress: Progress) -> None:
        self.strength = self.settings.strength(progress)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        settings = self.settings
        logits, features = with_features(model, batch.x)
        logits_adv, features_adv = with_features(model, batch.x_adv)
        if settings.base == "kl":
            robust = kl_divergence(logits_adv, logits.log_softmax(1)).mean()
        else:
            robust = F.cross_entropy(logits_adv, batch.y)
        domains = self._tell(features, 0) + self._tell(features_adv, 1)
        return F.cross_entropy(logits, batch.y) + settings.beta * robust + settings.domain_weight * domains

    def _tell(self, features: Tensor, domain: int) -> Tensor:
        """CE(D(h), domain) with the gradient to the features reversed."""
        logits = self.head(Reversal.apply(features.type_as(next(self.head.parameters())), self.strength))
        label = torch.full((len(features),), domain, device=features.device)
        self.metrics[("domain_natural", "domain_adversarial")[domain]] = (logits.argmax(1) == label).float().mean()
        return F.cross_entropy(logits, label)

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])


@DEFENSES.register(
    "dial", spans_training=True, reads="the features", smoke={"steps": 2, "domain_weight": 0.5}, passes=(13, 10, 2)
)
def dial(
    *,
    base: Literal["kl", "ce"] = "kl",
    beta: NonNegative = 8.0,
    domain_weight: NonNegative = 6.0,
    hidden: tuple[int, ...] = (100,),
    head_norm: bool = True,
    reversal: Literal["epoch", "update"] = "epoch",
    steps: Steps = 10,
    step_size: Positive | None = None,
    start_std: StartStd = 0.001,
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """TRADES (or clean plus adversarial cross-entropy) with features that hide which images are adversarial.

    A small head reads the input of the network's last linear layer and learns to distinguish natural from adversarial
    features. The network receives the reversed gradient of the head, with a strength that grows from 0 to 1. The head
    is not part of the network: it is neither attacked nor evaluated, nor perturbed with the weights (the released code
    perturbs it). Batch statistics see the clean and the adversarial batch once each; p(x) in the divergence is not
    detached. Training records the share of images whose domain the head recognizes, which should end near one half.

    When to use: where TRADES should also make clean and adversarial features similar, for example for corruptions that
    differ from the attack.

    First setting: the defaults for CIFAR-10 with wide_resnet; base: ce where clean accuracy matters less.

    Args:
        base: term next to the clean cross-entropy, and objective of the attack: "kl", the divergence of TRADES, or
            "ce", the cross-entropy at the adversarial images.
        beta: weight of that term.
        domain_weight: r, the weight of the head's two cross-entropies.
        hidden: widths of the head's hidden layers. Released: [100] with batch norms for WideResNet-34-10,
            [256, 256] without for CIFAR-100, none for SVHN.
        head_norm: whether a batch norm follows each hidden layer.
        reversal: meaning of p in the strength 2 / (1 + exp(-10 p)) - 1: "epoch", p = epochs / all epochs, counted from
            1, as in effect in the released code; or "update", the completed share of all updates.
        step_size: length of one step in the unit of eps; null is a quarter of eps; as released 0.007.

    Reference: Levi, Attias and Kontorovich, TMLR 2022, arXiv 2104.00322.
    """
    return MinMax(
        attack=Pgd(steps=steps, step_size=step_size, start="gaussian", start_std=start_std, loss=base),
        loss=DialLoss(
            base=base,
            beta=beta,
            domain_weight=domain_weight,
            hidden=hidden,
            head_norm=head_norm,
            reversal=reversal,
        ),
        attack_bn=attack_bn,
    )
