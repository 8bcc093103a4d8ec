"""Layers of a network for regularizers, and the sizes of their inputs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustcli.architectures.induced_norms import inputs_seen, is_matrix
from robustcli.attacks.crafting import crafting_mode


def trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers with trained weights, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_matrix(module) and isinstance(module.weight, Tensor) and module.weight.requires_grad
    }


def sizes_seen(model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Input sizes of each layer in one forward, without duplicates; the model does not change."""
    with inputs_seen(layers) as seen, crafting_mode(model, "eval"), torch.no_grad():
        model(x[:1])
    return {name: list(dict.fromkeys(found.sizes)) for name, found in seen.items() if found.sizes}
