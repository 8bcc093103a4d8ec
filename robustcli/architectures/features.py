"""What hooks see inside a network: its features, which its last linear layer makes the logits of, and other layers.

No architecture is written for it. Every classifier here ends with a linear layer, registered last; a hook on
that layer, there for one forward, sees what goes in.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError


def classifier_of(network: nn.Module) -> nn.Linear:
    """The last linear layer of a network.

    Raises:
        RobustCliError: it has none (torchvision's squeezenets end with a convolution).
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise RobustCliError(
            "architecture: this network has no linear layer, so its features cannot be told from its logits; "
            "resnet18 and the other networks of this project end with one"
        )
    return layers[-1]


def with_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward: logits (n, k) and features (n, d), both differentiable.

    Raises:
        RobustCliError: the layer was not called exactly once, as in a compiled network, which calls no hooks.
    """
    seen: list[Tensor] = []

    def see(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    hook = classifier_of(network).register_forward_pre_hook(see)
    try:
        logits = network(x)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise RobustCliError(
            f"the last linear layer of the network was seen {len(seen)} times in one forward and not once, so its "
            "features are not known; write train.compile: false, or choose another architecture"
        )
    return logits, seen[0].flatten(1)


def show_black_image(network: nn.Module, shape: ImageShape, hooks: Iterable[RemovableHandle]) -> None:
    """One forward in eval mode for the sake of these hooks, which are removed; the mode is restored."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, shape.channels, shape.height, shape.width))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
