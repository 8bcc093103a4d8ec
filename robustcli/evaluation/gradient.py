"""Check whether a network gives a gradient."""

import torch
from torch import nn

from robustcli.data.images import AnyImages
from robustcli.errors import EvaluationError
from robustcli.runtime.out_of_memory import is_out_of_memory

# Number of images of the check.
_IMAGES = 2


def gives_gradient(model: nn.Module, x: AnyImages) -> bool:
    """Return whether a gradient flows from the logits to the images.

    It does not flow through no_grad, inference_mode, detach, one-hot outputs and quantized layers. A gradient of zeros
    counts as one; the checks after an evaluation report it.
    """
    if is_quantized(model):
        # Autograd returns wrong gradients for unsupported layers without an error.
        return False
    probes = x[:_IMAGES].detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = model(probes)
            if not logits.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(logits.sum(), probes, allow_unused=True)
    except (RuntimeError, NotImplementedError, EvaluationError) as error:
        if is_out_of_memory(error):
            raise
        # The network worked before without gradients, so the failure is theirs.
        return False
    return gradient is not None


def is_quantized(model: nn.Module) -> bool:
    """Return whether a network has quantized layers."""
    return any(".quantized." in f"{type(module).__module__}." for module in model.modules())


def no_gradient(stages: list[str]) -> str:
    """Error message for an evaluation whose attacks all need a gradient, if there is none."""
    return (
        "this network gives no gradient (no_grad, detach, argmax or quantized layers do that), which "
        f"{', '.join(stages)} cannot do without; use an attack that needs none, such as --attack square"
    )
