"""SVC, singular value clipping: a bound on the spectral norm of every convolution."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures.induced_norms import is_matrix
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import REGULARIZERS, RunningRegularizer
from robustcli.optimization.regularizers.layers import sizes_seen, trained_layers
from robustcli.registry.types import Count, Positive


@REGULARIZERS.register("svc", reads="the layers", smoke={"clip": 0.5, "every": 2}, passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class Svc:
    """Clip the singular values of every convolution of images, taken as circular, at `clip`, every `every` updates.

    On a torus of the size of its input, a convolution is one matrix (outputs x inputs) per frequency, and its singular
    values are those of these matrices. They are clipped, and the resulting kernel is cut to the size of the old one,
    which lets values rise slightly above `clip` again. The model ignores stride and zero padding; a kernel larger than
    its input uses a torus of its own size. Kernels without values above `clip` stay bit-identical. Linear layers are
    not changed.

    Args:
        clip: c, the largest singular value; the authors try 2, 1.5, 1, 0.5 and 0.1.
        every: updates between two clippings.

    Reference: Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers", ICLR 2019, arXiv
        1805.10408; every 100 updates as in Liang and Huang, AAAI 2021.
    """

    clip: Positive = 1.0
    every: Count = 100

    def start(self, model: nn.Module) -> "RunningSvc":
        return RunningSvc(self, model)


class RunningSvc(RunningRegularizer):
    """A Svc bound to a model.

    Args:
        sizes: input sizes of each layer, recorded at the first update; they never change, so they are not saved.
    """

    def __init__(self, settings: Svc, model: nn.Module) -> None:
        self.settings = settings
        self.layers = {name: module for name, module in trained_layers(model).items() if isinstance(module, nn.Conv2d)}
        if not any(isinstance(module, nn.Conv2d) and is_matrix(module) for module in model.modules()):
            raise RobustCliError(
                "regularizer svc: this network has no convolution of images, so there is nothing to clip; choose "
                "norm_decay, or an architecture such as resnet18"
            )
        computed = [name for name, layer in self.layers.items() if not isinstance(layer.weight, nn.Parameter)]
        if computed:
            raise RobustCliError(
                f"regularizer svc: the weight of {computed[0]} is computed from other parameters, so it cannot be "
                "clipped; choose another regularizer or an architecture without parametrized weights"
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
    """Return the weight of a convolution after one clipping on a torus of a size, in its original shape."""
    weight = layer.weight.detach()
    outputs, inputs, *kernel = weight.shape
    # With dilation there are zeros between the kernel's entries.
    spans = [gap * (length - 1) + 1 for gap, length in zip(layer.dilation, kernel, strict=True)]
    sides = [max(side, span) for side, span in zip(size, spans, strict=True)]
    rows, columns = (slice(0, span, gap) for span, gap in zip(spans, layer.dilation, strict=True))
    spread = weight.new_zeros(outputs, inputs, *sides)
    spread[:, :, rows, columns] = weight
    # (groups, outputs, inputs, h, w) -> a matrix per group and frequency; a real kernel needs only half of them.
    grouped = spread.view(layer.groups, outputs // layer.groups, inputs, *sides)
    u, values, vh = torch.linalg.svd(torch.fft.rfft2(grouped).permute(0, 3, 4, 1, 2), full_matrices=False)
    cut = (u * values.clamp_max(clip).to(u.dtype)[..., None, :]) @ vh
    back = torch.fft.irfft2(cut.permute(0, 3, 4, 1, 2), s=sides).reshape(spread.shape)[:, :, rows, columns]
    # Not by an early return, which would wait for the device: an unclipped kernel must not change by rounding.
    return torch.where(values.max() > clip, back, weight)
