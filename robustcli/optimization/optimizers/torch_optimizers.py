"""Optimizers of PyTorch, with the options that adversarial training uses."""

from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

from robustcli.optimization.optimizers import OPTIMIZERS
from robustcli.registry.types import ProperShare
from robustcli.runtime.uncompiled import without_compiler

_Sgd, _Adam, _AdamW = without_compiler(SGD), without_compiler(Adam), without_compiler(AdamW)


@OPTIMIZERS.register("sgd")
def sgd(groups: list[dict[str, Any]], lr: float, *, momentum: ProperShare = 0.9, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        momentum: weight of the past update.
        nesterov: whether the gradient is taken after the momentum step.

    Reference: Sutskever et al., ICML 2013.
    """
    return _Sgd(groups, lr=lr, momentum=momentum, nesterov=nesterov)


@OPTIMIZERS.register("adam")
def adam(groups: list[dict[str, Any]], lr: float, *, beta1: ProperShare = 0.9, beta2: ProperShare = 0.999) -> Optimizer:
    """Adam; weight decay is added to the gradient.

    Args:
        beta1: weight of the past mean gradient.
        beta2: weight of the past mean squared gradient.

    Reference: Kingma and Ba, ICLR 2015.
    """
    return _Adam(groups, lr=lr, betas=(beta1, beta2))


@OPTIMIZERS.register("adamw")
def adamw(
    groups: list[dict[str, Any]], lr: float, *, beta1: ProperShare = 0.9, beta2: ProperShare = 0.999
) -> Optimizer:
    """Adam with decoupled weight decay.

    Args:
        beta1: weight of the past mean gradient.
        beta2: weight of the past mean squared gradient.

    Reference: Loshchilov and Hutter, ICLR 2019.
    """
    return _AdamW(groups, lr=lr, betas=(beta1, beta2))
