"""Attention between kernel sizes on images whose objects are smaller or larger."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, resize

from robustcli.architectures.sknet import BranchAttention
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import logits_of
from robustcli.errors import RobustCliError
from robustcli.registry.types import BatchSize, Positive
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("kernel_attention", smoke={"scales": (1.0, 1.5)})
@dataclass(frozen=True, kw_only=True)
class KernelAttention:
    """Weight of the larger receptive field in selective kernels, by the scale of the image.

    Every image is resized by each scale around its center: it is cropped where it became larger, and has a black border
    where it became smaller. `larger` is the attention on the branch with the largest kernel, as a mean over channels,
    images and units (0.5 if two branches count alike); the table of units has its change from the smallest to the
    largest scale. A network without selective kernels has no units, and `larger` is null.

    Args:
        scales: factors by which images are enlarged, in any order.

    Reference: Li et al., "Selective Kernel Networks", CVPR 2019.
    """

    scales: tuple[Positive, ...] = (1.0, 1.5, 2.0)
    batch_size: BatchSize = 250

    def __post_init__(self) -> None:
        if not self.scales:
            raise RobustCliError("kernel_attention: scales is empty; name at least one")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        curve, by_scale = [], []
        for scale in sorted(set(self.scales)):
            scaled = _scaled(x, scale)
            with _larger_shares(model) as shares:
                predictions = logits_of(model, scaled, self.batch_size).argmax(1)
            means = {name: float(torch.cat(parts).mean()) for name, parts in shares.items() if parts}
            larger = sum(means.values()) / len(means) if means else None
            curve.append({"scale": scale, "larger": larger, "accuracy": float((predictions == y).double().mean())})
            by_scale.append(means)
        least, greatest = by_scale[0], by_scale[-1]
        units = [{"unit": name, "larger": least[name], "change": greatest[name] - least[name]} for name in least]
        return {"curve": curve, "units": units}


def _scaled(x: Tensor, scale: float) -> Tensor:
    """Resize images around their center to a multiple of their size, on a canvas of the old size."""
    sides = x.shape[2:]
    resized = resize(x, [max(1, round(scale * side)) for side in sides], antialias=True)
    cropped: Tensor = center_crop(resized, list(sides))
    return cropped.clamp(0, 1)


@contextmanager
def _larger_shares(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect by unit the attention (n,) on the last branch, which has the largest kernel, in the forwards inside."""
    shares: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, BranchAttention):
            kept = shares.setdefault(name, [])
            hooks.append(
                module.register_forward_hook(
                    lambda _module, _inputs, out, kept=kept: kept.append(out[-1].double().flatten(1).mean(1).cpu())
                )
            )
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()
