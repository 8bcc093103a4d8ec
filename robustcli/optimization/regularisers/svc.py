"""SVC, singular value clipping: no convolution may lengthen a difference of its inputs by more than a factor."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularisers import REGULARISERS, RunningRegulariser
from robustcli.optimization.regularisers.layers import sizes_seen, trained_layers
from robustcli.registry.types import Count, Positive


@REGULARISERS.register("svc", reads="the layers", smoke={"clip": 0.5, "every": 2}, passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class Svc:
    """Every so many updates the singular values of every convolution, taken as circular, are cut at `clip`.

    On a torus of the size of its input a convolution is one matrix (outputs x inputs) for each frequency, and
    its singular values are theirs. Each is cut, and of the kernel that this makes the taps of the old one are
    kept, which lets values rise above `clip` again a little. Stride, and the zeros that really lie beyond the
    border, are left out of the model; a kernel larger than its input is taken on a torus of its own size.
    Kernels with no value above `clip` stay bit for bit. Linear layers are not changed.

    Args:
        clip: c, the largest singular value; the authors try 2, 1.5, 1, 0.5 and 0.1.
        every: updates from one clipping to the next.

    Reference: Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers", ICLR 2019, arXiv
        1805.10408; every 100 updates as in Liang and Huang, AAAI 2021.
    """

    clip: Positive = 1.0
    every: Count = 100

    def start(self, model: nn.Module) -> "RunningSvc":
        return RunningSvc(self, model)


class RunningSvc(RunningRegulariser):
    """An Svc at work.

    Args:
        sizes: of the inputs of each layer, looked up at the first update; no state, for they never change.
    """

    def __init__(self, settings: Svc, model: nn.Module) -> None:
        self.settings = settings
        self.layers = {name: module for name, module in trained_layers(model).items() if isinstance(module, nn.Conv2d)}
        computed = [name for name, layer in self.layers.items() if not isinstance(layer.weight, nn.Parameter)]
        if computed:
            raise RobustCliError(
                f"regulariser svc: the weight of {computed[0]} is computed from other parameters, so it cannot be "
                "clipped; choose another regulariser or an architecture without parametrised weights"
            )
        self.sizes: dict[str, list[tuple[int, ...]]] | None = None

    def penalty(self, model: nn.Module, x: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        if self.sizes is None:
            self.sizes = sizes_seen(model, self.layers, x)
        return None

    def after(self, model: nn.Module, progress: Progress) -> None:
        if (progress.step + 1) % self.settings.every:
            return
        assert self.sizes is not None, "an update was made, so its batch was seen"
        for name, sizes in self.sizes.items():
            layer = self.layers[name]
            for _, height, width in sizes:
                with torch.no_grad():
                    layer.weight.copy_(clipped(layer, (height, width), self.settings.clip))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def clipped(layer: nn.Conv2d, size: tuple[int, int], clip: float) -> Tensor:
    """The weight of a convolution after one clipping on a torus of a size, in the shape that it has."""
    weight = layer.weight.detach()
    outputs, inputs, *kernel = weight.shape
    # With dilation the taps lie apart, zeros between them.
    spans = [gap * (length - 1) + 1 for gap, length in zip(layer.dilation, kernel, strict=True)]
    sides = [max(side, span) for side, span in zip(size, spans, strict=True)]
    rows, columns = (slice(0, span, gap) for span, gap in zip(spans, layer.dilation, strict=True))
    spread = weight.new_zeros(outputs, inputs, *sides)
    spread[:, :, rows, columns] = weight
    # (groups, outputs, inputs, h, w) -> a matrix for each group and frequency; of real kernels half of them tell all.
    grouped = spread.view(layer.groups, outputs // layer.groups, inputs, *sides)
    u, values, vh = torch.linalg.svd(torch.fft.rfft2(grouped).permute(0, 3, 4, 1, 2), full_matrices=False)
    cut = (u * values.clamp_max(clip).to(u.dtype)[..., None, :]) @ vh
    back = torch.fft.irfft2(cut.permute(0, 3, 4, 1, 2), s=sides).reshape(spread.shape)[:, :, rows, columns]
    # Without a word from the device: a kernel that needs no clipping must not take the rounding of the way there.
    return torch.where(values.max() > clip, back, weight)
