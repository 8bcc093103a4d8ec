"""Numerical precision of training and evaluation.

In training `train.precision` selects the precision of passes through the network: "fp32", or "bf16" or "fp16" under
autocast. Images, perturbations, projections, logits, losses, weights, averages and the optimizer are always fp32. fp16
has a small range, so gradients inside the network are multiplied by a constant; where they leave the network, at the
images and at the weights, they are divided by it again.

On a GPU, "fp32" follows the settings of torch, whose default rounds the inputs of convolutions to TF32. Each session of
a run records them.

Evaluation is fp32 without autocast and TF32 for any precision of training, because bf16 has a spacing of 1/255 near 1,
too coarse for perturbations of 8/255. An attack may search in lower precision (`attacks/surrogate.py`); its results are
confirmed in fp32.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.registry.types import Precision

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Scaled gradients of a sum of cross-entropies are at most 1024 in every logit, 1/64 of the largest fp16 number. The
# gradient at a pixel is about 1e-4, and 1e6 times the smallest fp16 number after scaling.
GRADIENT_SCALE = 2.0**10
_LARGEST = torch.finfo(torch.float16).max / GRADIENT_SCALE


def autocast(precision: Precision, device_type: str) -> torch.autocast:
    """Return the autocast context for passes in training."""
    return torch.autocast(device_type, dtype=TYPES[precision], enabled=precision != "fp32")


def is_native(precision: Precision, device: torch.device) -> bool:
    """Return True if a device has instructions for a precision; otherwise torch converts around every product."""
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
    # On x86 the last check is true for any AVX-512, which may still have to convert.
    has_instructions = torch.cpu._is_avx512_bf16_supported() or platform.machine().lower() not in ("x86_64", "amd64")
    return has_instructions and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def native_precision(device: torch.device) -> Precision:
    """Return the fastest precision without a loss of accuracy: bf16 on a GPU that supports it, otherwise fp32."""
    return "bf16" if device.type == "cuda" and is_native("bf16", device) else "fp32"


def emulation(asked: str, precision: Precision, device: torch.device, instead: str) -> str | None:
    """Return a warning if the device only emulates a precision, which is slow; otherwise None.

    Args:
        asked: setting that selects the precision, as a user writes it.
        instead: setting to recommend.
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
    """Identity that multiplies the gradient by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _UnscaledImages(torch.autograd.Function):
    """Identity that divides the gradient by the scale, and replaces overflow by the largest finite value.

    NaN becomes 0, so an attack loses at most those pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.nan_to_num(gradient / GRADIENT_SCALE, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


# True during a pass of `call_scaled`.
_scales = ContextVar("scales", default=False)


def scaled_like_logits(values: Tensor) -> Tensor:
    """Return values from inside a network that a loss reads, such as features, with the gradient scaled as logits' is.

    For hooks: a gradient that enters the network elsewhere than at its logits would be divided by the scale only.
    """
    if not _scales.get():
        return values
    scaled: Tensor = _Scaled.apply(values.float(), GRADIENT_SCALE)
    return scaled


def call_scaled(network: nn.Module, x: Tensor) -> Tensor:
    """Return logits of a network in fp16, with gradients that are scaled only inside the network.

    After an overflow the gradients of the weights are not finite; see `SkippedUpdates`.
    """
    x = _UnscaledImages.apply(x)
    unscaled = {
        name: _Scaled.apply(parameter, 1 / GRADIENT_SCALE)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    token = _scales.set(True)
    try:
        with autocast("fp16", x.device.type):
            logits: Tensor = torch.func.functional_call(network, unscaled, (x,)) if unscaled else network(x)
    finally:
        _scales.reset(token)
    scaled: Tensor = _Scaled.apply(logits.float(), GRADIENT_SCALE)
    return scaled


class SkippedUpdates:
    """Set the gradients of an update to 0 if any of them overflowed; momentum and weight decay still apply.

    Unlike a gradient scaler that skips the step, this never waits for the device.

    Args:
        optimizer: optimizer to watch; register other hooks on its steps, such as clipping, later.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._is_skipped: Tensor | None = None
        optimizer.register_step_pre_hook(self._zero_if_overflowed)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """1 if the last update was skipped, otherwise 0, as a scalar tensor."""
        return {} if self._is_skipped is None else {"skipped": self._is_skipped}

    def _zero_if_overflowed(self, optimizer: Optimizer, *_: Any) -> None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if not gradients:
            return
        # The largest absolute value of every gradient; NaN stays NaN.
        is_finite = torch.stack(torch._foreach_norm(gradients, torch.inf)).isfinite().all()
        # As integers: zero times infinity is not a number. All of it in a few kernels, whatever the number of weights.
        torch._foreach_mul_([gradient.view(torch.int32) for gradient in gradients], is_finite.int())
        self._is_skipped = (~is_finite).float()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in full float32, without autocast and TF32, and restore the settings of the process at the end."""
    restore = _without_tf32()
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        restore()


def tf32_in_use() -> list[str]:
    """Return what a GPU computes in TF32 instead of fp32 now: "convolutions", "products", both or nothing."""
    cudnn: Any = torch.backends.cudnn
    try:
        are_used = {"convolutions": cudnn.allow_tf32, "products": torch.get_float32_matmul_precision() != "highest"}
    except RuntimeError:
        switches: dict[str, Any] = {"convolutions": cudnn.conv, "products": torch.backends.cuda.matmul}
        are_used = {name: switch.fp32_precision == "tf32" for name, switch in switches.items()}
    return [name for name, is_used in are_used.items() if is_used]


def _without_tf32() -> Callable[[], None]:
    """Disable TF32 and return a function that restores it. Torch forbids mixing its older and newer settings."""
    cudnn: Any = torch.backends.cudnn
    try:
        matmul, allow_tf32 = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        return _without_tf32_newer_api()
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False

    def restore() -> None:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = allow_tf32

    return restore


def _without_tf32_newer_api() -> Callable[[], None]:
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"

    def restore() -> None:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision

    return restore
