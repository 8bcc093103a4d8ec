"""Induced norms of the layers, and what their product says."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.architectures import Normalize, Standardize
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.fields import Count
from robustcli.induced_norms import Map, inputs_seen, is_matrix, map_of, row_and_column_sums, there_and_back
from robustcli.noise import IndexedNoise, derive
from robustcli.threat import ThreatModel

# Divides zeros.
_TINY = 1e-30
_NORMS = ("l1", "linf", "spectral")


@DIAGNOSTICS.register("layer_norms", smoke={"iterations": 5})
@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """Norms of every linear layer, convolution, batch norm and input normalisation, and their products.

    A norm says by how much the layer can lengthen a difference of its inputs. Those in l1 (the largest column sum of
    the matrix that the layer is) and linf (the largest row sum) are exact, at the sizes of the inputs that the layer
    sees, zero padding and stride included. The spectral norm comes from power iteration, which approaches it from
    below. Biases move all points alike and count for nothing. A product bounds how far the logits can move if the
    network is a chain of these layers and of others that lengthen nothing (ReLU, say); for a network with branches it
    is only a size to compare by. It is left out where a layer has weights and none of these forms, which is listed, and
    where it is beyond the range of numbers.

    Args:
        iterations: of the power iteration; each is a forward and a backward of one layer.

    Reference: Liang and Huang, "Large Norms of CNN Layers Do Not Hurt Adversarial Robustness", AAAI 2021.
    """

    iterations: Count = 50

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        layers = {name: module for name, module in model.named_modules() if _is_known(module)}
        with inputs_seen(layers) as seen, torch.no_grad():
            model(x[:1])
        rows = []
        for name, module in layers.items():
            sizes = seen[name].sizes
            if not sizes:
                continue  # Weights that the forward does not use.
            generator = torch.Generator().manual_seed(derive(rng.seed, "layer norms", name))
            found = [_norms(module, size, self.iterations, generator) for size in dict.fromkeys(sizes)]
            largest = {key: max(norms[key] for norms in found) for key in _NORMS}
            rows.append({"layer": name, "kind": type(module).__name__, "calls": len(sizes), **largest})
        others = [
            f"{name} ({type(module).__name__})"
            for name, module in model.named_modules()
            if name not in layers and "parametrizations" not in name and _has_weights(module)
        ]
        products = {key: None if others else _product(rows, key) for key in _NORMS}
        return {"products": products, "rows": rows, "others": others}


def _product(rows: list[dict[str, Any]], key: str) -> float | None:
    """A factor for every call; None beyond the range of numbers."""
    product = math.prod(row[key] for row in rows for _ in range(row["calls"]))
    return product if math.isfinite(product) else None


def _is_known(module: nn.Module) -> bool:
    """Whether the layer is one whose matrix is known; a subclass with a forward of its own is not."""
    if isinstance(module, Normalize):
        return True
    if isinstance(module, _BatchNorm):
        return module.running_var is not None
    return is_matrix(module)


def _has_weights(module: nn.Module) -> bool:
    """Of its own; buffers count, as some layers keep there what they multiply by, and so does an image's own scale."""
    return isinstance(module, Standardize) or bool([*module.parameters(recurse=False), *module.buffers(recurse=False)])


def _norms(module: nn.Module, size: tuple[int, ...], iterations: int, generator: torch.Generator) -> dict[str, float]:
    """The three norms of a layer, for inputs of one size."""
    if isinstance(module, Normalize | _BatchNorm):
        return dict.fromkeys(_NORMS, float(_scale(module).abs().max()))
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    apply = map_of(module)
    largest = weight.abs().max()
    row_sums, column_sums = row_and_column_sums(apply, size, weight.abs())
    start = torch.randn((1, *size), generator=generator, dtype=weight.dtype).to(weight.device)
    return {
        "l1": float(column_sums.max()),
        "linf": float(row_sums.max()),
        # Of weights up to 1: squares of very large or small ones leave the range of single precision.
        "spectral": float(largest) * _spectral(apply, weight / largest.clamp_min(_TINY), start, iterations),
    }


def _scale(module: Normalize | _BatchNorm) -> Tensor:
    """What the module multiplies channels by."""
    if isinstance(module, Normalize):
        return 1 / module.std
    assert module.running_var is not None
    scale = (module.running_var + module.eps).rsqrt()
    return scale if module.weight is None else module.weight.detach() * scale


def _spectral(apply: Map, weight: Tensor, v: Tensor, iterations: int) -> float:
    """Power iteration on W'W: the length of W v for the last unit vector v."""
    length = 0.0
    for _ in range(iterations):
        image, back = there_and_back(apply, weight, v / v.norm(), lambda image: image)
        length = float(image.norm())
        if not length:
            return 0.0
        v = back
    return length
