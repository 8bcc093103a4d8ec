"""Whether attacks get a gradient from a network at all."""

import torch
from torch import nn

from robustcli.data.images import AnyImages
from robustcli.errors import EvaluationError

# Images that the question is asked with.
_IMAGES = 2


def gives_gradient(model: nn.Module, x: AnyImages) -> bool:
    """Whether a gradient flows from the logits to the images.

    None flows through no_grad, inference_mode, detach, one-hot outputs and quantized layers. A gradient of zeros
    counts as one; the checks after an evaluation report it.
    """
    if is_quantized(model):
        # What autograd makes of layers that it does not know is not a gradient, though it does not say so.
        return False
    probes = x[:_IMAGES].detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = model(probes)
            if not logits.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(logits.sum(), probes, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, EvaluationError):
        # Without gradients the network was asked before, so it is they that fail.
        return False
    return gradient is not None


def is_quantized(model: nn.Module) -> bool:
    """Whether a network has quantized layers."""
    return any(".quantized." in f"{type(module).__module__}." for module in model.modules())


def no_gradient(stages: list[str]) -> str:
    """What to do where all attacks of an evaluation need a gradient that there is none of."""
    return (
        "this network gives no gradient (no_grad, detach, argmax or quantized layers do that), which "
        f"{', '.join(stages)} cannot do without; use an attack that needs none, such as --attack square"
    )
