"""Features of a network: the input of its last linear layer, read by a hook.

Architectures need no code for it: all classifiers here end with a linear layer, registered last.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.runtime.precision import scaled_like_logits


def classifier_of(network: nn.Module) -> nn.Linear:
    """Return the last linear layer of a network.

    Raises:
        RobustCliError: there is no linear layer (torchvision's squeezenets end with a convolution).
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise RobustCliError(
            "architecture: this network has no linear layer, so its features cannot be found; "
            "resnet18 and the other networks of this project end with one"
        )
    return layers[-1]


def with_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (n, k) and features (n, d) of one forward pass, both differentiable.

    Raises:
        RobustCliError: the layer was not called exactly once, as in a compiled network, which ignores hooks.
    """
    seen: list[Tensor] = []

    def record(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(scaled_like_logits(inputs[0]))

    hook = classifier_of(network).register_forward_pre_hook(record)
    try:
        logits = network(x)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise RobustCliError(
            f"the last linear layer of the network was called {len(seen)} times in one forward pass, not once, so its "
            "features are not known; write train.compile: false, or choose another architecture"
        )
    return logits, seen[0].flatten(1)


def show_black_image(network: nn.Module, shape: ImageShape, hooks: Iterable[RemovableHandle]) -> None:
    """Run one forward pass in eval mode to trigger hooks, then remove the hooks and restore the mode."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape.size))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
