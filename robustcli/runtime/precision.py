"""In which numbers things are computed: the whole policy, in one place.

Training asks for a precision of the network's passes (`train.precision`): "fp32", "bf16" or "fp16", the latter two
under autocast. Images, perturbations, projections, logits, losses, weights, averages and the optimiser are fp32 in each
of them. fp16 alone has a small range, so gradients go back through the network multiplied by a constant; they leave
it, towards the images and towards the weights, divided by the same, and nobody outside notices.

What "fp32" is to a GPU is left to the switches of torch, whose default rounds the inputs of convolutions to TF32;
each session of a run records them.

Evaluation is fp32 without autocast and without TF32, whatever training did: what is spaced 1/255 apart in bf16 is no
place to look for perturbations of 8/255. A search may hurry (`search.py`), its finds are judged in fp32.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The gradient of a sum of cross-entropies is at most 1 in every logit, so that 64 times as much still fits into fp16;
# what reaches a pixel, some 1e-4, is 1e6 times its smallest number.
GRADIENT_SCALE = 2.0**10
_LARGEST = torch.finfo(torch.float16).max / GRADIENT_SCALE


def autocast(precision: Precision, device_type: str) -> torch.autocast:
    """The context of a network's passes in training."""
    return torch.autocast(device_type, dtype=_TYPES[precision], enabled=precision != "fp32")


def is_native(precision: Precision, device: torch.device) -> bool:
    """Whether a device has instructions for a precision; without them torch converts around every product."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        with torch.cuda.device(device):
            return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    if precision == "fp16":
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    # Of x86 that says only that AVX-512 is there, in which oneDNN converts too.
    has_instructions = torch.cpu._is_avx512_bf16_supported() or platform.machine().lower() not in ("x86_64", "amd64")
    return has_instructions and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def emulation(asked: str, precision: Precision, device: torch.device, instead: str) -> str | None:
    """A warning that passes will be slow because the device only emulates a precision; None if it does not.

    Args:
        asked: the setting that asks for it, as a user writes it.
        instead: what to write.
    """
    if is_native(precision, device):
        return None
    lacking = f"has no instructions for {precision} and emulates it"
    if device.type == "cpu":
        which = f"this processor (as torch uses it: {torch.backends.cpu.get_cpu_capability()}) {lacking}"
        cost = "passes then take several times as long as in fp32"
    else:
        which, cost = f"{torch.cuda.get_device_name(device)} {lacking}", "passes then take longer than in fp32"
    return f"{asked}: {which}; {cost}; write {instead}"


class _Scaled(torch.autograd.Function):
    """The tensor itself; its gradient goes back multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _UnscaledImages(torch.autograd.Function):
    """Images; their gradient goes back divided by the scale, and what overflowed is as large as fp16 allows.

    An attack loses a pixel where even the direction overflowed, and no more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.nan_to_num(gradient / GRADIENT_SCALE, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


def call_scaled(network: nn.Module, x: Tensor) -> Tensor:
    """Logits of a network in fp16 whose gradients are scaled inside and as they should be outside.

    Overflow reaches the weights as gradients that are not finite: see `SkippedUpdates`.
    """
    x = _UnscaledImages.apply(x)
    unscaled = {
        name: _Scaled.apply(parameter, 1 / GRADIENT_SCALE)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    with autocast("fp16", x.device.type):
        logits: Tensor = torch.func.functional_call(network, unscaled, (x,)) if unscaled else network(x)
    scaled: Tensor = _Scaled.apply(logits.float(), GRADIENT_SCALE)
    return scaled


class SkippedUpdates:
    """Takes the gradient of an update away if any of it overflowed; momentum and decay go on.

    Nothing waits for the device, unlike with a scaler that leaves the update out.

    Args:
        optimizer: what else looks at gradients before a step, such as clipping, must be registered later.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._is_skipped: Tensor | None = None
        optimizer.register_step_pre_hook(self._look)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Whether the last update was one, as a scalar; its mean over an epoch is their share."""
        return {} if self._is_skipped is None else {"skipped": self._is_skipped}

    def _look(self, optimizer: Optimizer, *_: Any) -> None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if not gradients:
            return
        is_finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        for gradient in gradients:
            gradient.copy_(torch.where(is_finite, gradient, 0.0))
        self._is_skipped = (~is_finite).float()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """float32 as it is written: no autocast, no TF32; the settings of the process are restored."""
    restore = _without_tf32()
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        restore()


def tf32_in_use() -> list[str]:
    """What a GPU would compute in TF32 now where fp32 is asked for: "convolutions", "products", both or neither."""
    cudnn: Any = torch.backends.cudnn
    try:
        are_used = {"convolutions": cudnn.allow_tf32, "products": torch.get_float32_matmul_precision() != "highest"}
    except RuntimeError:
        switches: dict[str, Any] = {"convolutions": cudnn.conv, "products": torch.backends.cuda.matmul}
        are_used = {name: switch.fp32_precision == "tf32" for name, switch in switches.items()}
    return [name for name, is_used in are_used.items() if is_used]


def _without_tf32() -> Callable[[], None]:
    """Switch TF32 off; the function returned puts it back. Torch refuses to mix its older and newer switches."""
    cudnn: Any = torch.backends.cudnn
    try:
        matmul, allow_tf32 = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        return _without_tf32_by_newer_switches()
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False

    def restore() -> None:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = allow_tf32

    return restore


def _without_tf32_by_newer_switches() -> Callable[[], None]:
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"

    def restore() -> None:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision

    return restore
