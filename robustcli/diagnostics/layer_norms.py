"""Induced norms of the layers and their product."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

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
from robustcli.architectures.plain import LargestPixel
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# Avoids a division by zero.
_TINY = 1e-30
# Largest number of entries of a matrix whose singular values are computed.
_DENSE = 2**18
_NORMS = ("l1", "linf", "spectral")
# Layers whose kernel is not the matrix they multiply by, and layers that can increase distances without weights.
_OTHERS = (
    *(PreconditionedConv2d, SpectralPool, Standardize, nn.Upsample),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _InstanceNorm),
    # Their slopes are at most 1.10, 1.13, 1.09 and 1.5.
    *(nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish),
)


@DIAGNOSTICS.register("layer_norms", smoke={"iterations": 5})
@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """Norms of every linear layer, convolution, batch norm and input normalization, and their products.

    A norm is the largest factor by which the layer can increase a distance between inputs. The l1 norm (largest column
    sum of the layer's matrix) and the linf norm (largest row sum) are exact, for the actual input sizes, with zero
    padding and stride. The spectral norm is exact where `spectral_by` is matrix, for small layers and layers that scale
    channels; otherwise power iteration approaches it from below. Biases do not count. The product bounds how far the
    logits can move if the network is a chain of these layers and of layers with norm at most 1, such as ReLU; for a
    network with branches it is only a rough scale. It is left out if it overflows, or if there are layers with another
    form, which are listed: weights that are not the layer's matrix (preconditioned convolutions), or no weights but a
    norm above 1 (upsampling, spectral pooling, overlapping max pools, group norms, SiLU and GELU).

    Args:
        iterations: power iterations; each costs a forward and a backward of one layer.
        spectral: "by_size": exact for layers with a small matrix; "iterated": exact only for diagonal layers.

    Reference: Liang and Huang, "Large Norms of CNN Layers Do Not Hurt Adversarial Robustness", AAAI 2021.
    """

    iterations: Count = 50
    spectral: Literal["by_size", "iterated"] = "by_size"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        modules = dict(model.named_modules())
        whole = [name for name, module in modules.items() if isinstance(module, _OTHERS) or _overlaps(module)]
        # The parts of such a layer are not the matrix it multiplies by.
        inside = {name for other in whole for name in modules if name.startswith(f"{other}." if other else "")}
        inside -= set(whole)
        layers = {name: module for name, module in modules.items() if _is_known(module) and name not in inside}
        with inputs_seen(layers) as seen, torch.no_grad():
            model(x[:1])
        rows = []
        for name, module in layers.items():
            sizes = seen[name].sizes
            if not sizes:
                continue  # The forward does not use this layer.
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
        # Scale the weights to at most 1: squares of very large or small ones overflow or vanish in float32.
        scaled = weight / largest.clamp_min(_TINY)
        if self._is_dense(module, size):
            spectral = float(torch.linalg.matrix_norm(dense_matrix(apply, size, scaled.double().cpu()), 2))
        else:
            start = torch.randn((1, *size), generator=generator, dtype=weight.dtype).to(weight.device)
            spectral = _spectral(apply, scaled, start, self.iterations)
        return {"l1": float(column_sums.max()), "linf": float(row_sums.max()), "spectral": float(largest) * spectral}

    def _is_dense(self, module: nn.Module, size: tuple[int, ...]) -> bool:
        """Return whether the spectral norm is computed from the full matrix or a diagonal."""
        if isinstance(module, Normalize | _BatchNorm):
            return True
        return self.spectral == "by_size" and math.prod(size) * output_count(module, size) <= _DENSE


def _product(rows: list[dict[str, Any]], key: str) -> float | None:
    """Product over all calls of all layers; None if it overflows."""
    product = math.prod(row[key] for row in rows for _ in range(row["calls"]))
    return product if math.isfinite(product) else None


def _is_known(module: nn.Module) -> bool:
    """Return whether the matrix of the layer is known; that of a subclass with its own forward is not."""
    if isinstance(module, Normalize):
        return True
    if isinstance(module, _BatchNorm):
        return module.running_var is not None
    return is_matrix(module)


def _has_weights(module: nn.Module) -> bool:
    """Return whether the module itself has parameters or buffers (some layers keep their factors in buffers)."""
    return bool([*module.parameters(recurse=False), *module.buffers(recurse=False)])


def _overlaps(module: nn.Module) -> bool:
    """Return whether the module is a max pool that may return a pixel several times."""
    if isinstance(module, LargestPixel):
        return module.stride < 2
    if not isinstance(module, nn.MaxPool2d):
        return False
    kernel, stride = (
        2 * (sides,) if isinstance(sides, int) else sides for sides in (module.kernel_size, module.stride)
    )
    return any(side > step for side, step in zip(kernel, stride, strict=True))


def _scale(module: Normalize | _BatchNorm) -> Tensor:
    """Factor of each channel."""
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
