"""Induced norms of the layers, and what their product says."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.architectures import Normalize, Standardize
from robustcli.architectures.convnorm import PreconditionedConv2d
from robustcli.architectures.downsampling import SpectralPool
from robustcli.architectures.induced_norms import (
    Map,
    dense_matrix,
    inputs_seen,
    is_matrix,
    map_of,
    output_count,
    row_and_column_sums,
    there_and_back,
)
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# Divides zeros.
_TINY = 1e-30
# Numbers in the largest matrix whose singular values are computed.
_DENSE = 2**18
_NORMS = ("l1", "linf", "spectral")
# Whose kernels are not what they multiply by, and what has no weights and yet lengthens differences.
_OTHERS = (PreconditionedConv2d, SpectralPool, nn.Upsample)


@DIAGNOSTICS.register("layer_norms", smoke={"iterations": 5})
@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """Norms of every linear layer, convolution, batch norm and input normalisation, and their products.

    A norm says by how much the layer can lengthen a difference of its inputs. Those in l1 (the largest column sum of
    the matrix that the layer is) and linf (the largest row sum) are exact, at the sizes of the inputs that the layer
    sees, zero padding and stride included. So is the spectral norm where `spectral_by` says matrix, which it does for
    small layers and for those that scale channels; by iteration it is approached from below. Biases move all points
    alike and count for nothing. A product bounds how far the logits can move if the network is a chain of these layers
    and of others that lengthen nothing (ReLU, say); for a network with branches it is only a size to compare by. It is
    left out where it is beyond the range of numbers, and where there are layers of other forms, which are listed: with
    weights, such as preconditioned convolutions, whose kernels are not what they multiply by; or without, but
    lengthening differences, as enlarging and spectral pooling do.

    Args:
        iterations: of the power iteration; each is a forward and a backward of one layer.
        spectral: "by_size": exact for layers whose matrix is small; "iterated": for no layer but a diagonal.

    Reference: Liang and Huang, "Large Norms of CNN Layers Do Not Hurt Adversarial Robustness", AAAI 2021.
    """

    iterations: Count = 50
    spectral: Literal["by_size", "iterated"] = "by_size"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        modules = dict(model.named_modules())
        whole = [name for name, module in modules.items() if isinstance(module, _OTHERS)]
        # What such a layer consists of is not what it multiplies by.
        inside = {name for other in whole for name in modules if name.startswith(f"{other}." if other else "")}
        inside -= set(whole)
        layers = {name: module for name, module in modules.items() if _is_known(module) and name not in inside}
        with inputs_seen(layers) as seen, torch.no_grad():
            model(x[:1])
        rows = []
        for name, module in layers.items():
            sizes = seen[name].sizes
            if not sizes:
                continue  # Weights that the forward does not use.
            generator = torch.Generator().manual_seed(derive(rng.seed, "layer norms", name))
            found = [self._norms(module, size, generator) for size in dict.fromkeys(sizes)]
            largest = {key: max(norms[key] for norms in found) for key in _NORMS}
            is_exact = all(self._is_dense(module, size) for size in sizes)
            row = {"layer": name, "kind": type(module).__name__, "calls": len(sizes), **largest}
            rows.append({**row, "spectral_by": "matrix" if is_exact else "iteration"})
        others = [
            f"{name} ({type(module).__name__})"
            for name, module in modules.items()
            if name not in layers and name not in inside and "parametrizations" not in name
            if name in whole or _has_weights(module)
        ]
        products = {key: None if others else _product(rows, key) for key in _NORMS}
        return {"products": products, "rows": rows, "others": others}

    def _norms(self, module: nn.Module, size: tuple[int, ...], generator: torch.Generator) -> dict[str, float]:
        """The three norms of a layer, for inputs of one size."""
        if isinstance(module, Normalize | _BatchNorm):
            return dict.fromkeys(_NORMS, float(_scale(module).abs().max()))
        weight = module.weight
        assert isinstance(weight, Tensor)
        weight = weight.detach()
        apply = map_of(module)
        largest = weight.abs().max()
        row_sums, column_sums = row_and_column_sums(apply, size, weight.abs())
        # Weights up to 1: squares of very large or small ones leave the range of single precision.
        scaled = weight / largest.clamp_min(_TINY)
        if self._is_dense(module, size):
            spectral = float(torch.linalg.matrix_norm(dense_matrix(apply, size, scaled.double().cpu()), 2))
        else:
            start = torch.randn((1, *size), generator=generator, dtype=weight.dtype).to(weight.device)
            spectral = _spectral(apply, scaled, start, self.iterations)
        return {"l1": float(column_sums.max()), "linf": float(row_sums.max()), "spectral": float(largest) * spectral}

    def _is_dense(self, module: nn.Module, size: tuple[int, ...]) -> bool:
        """Whether the spectral norm for inputs of one size is found from a whole matrix or a diagonal."""
        if isinstance(module, Normalize | _BatchNorm):
            return True
        return self.spectral == "by_size" and math.prod(size) * output_count(module, size) <= _DENSE


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
