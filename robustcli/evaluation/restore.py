"""Conditions of an evaluation: single precision, and everything that it may change is restored."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.models.digest import tensor_bytes
from robustcli.runtime.precision import full_precision


@contextmanager
def settled(model: nn.Module, device_type: str) -> Iterator[None]:
    """Single precision inside; model and generators are restored afterwards."""
    with restored_model(model), full_precision(device_type), restored_generators(torch.device(device_type)):
        yield


@contextmanager
def restored_generators(device: torch.device) -> Iterator[None]:
    """Restore the global generators of torch and numpy."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


@contextmanager
def restored_model(model: nn.Module) -> Iterator[None]:
    """Restore weights, buffers, gradients, modes and requires_grad bit for bit, also after an error.

    Warns if weights or buffers had changed, because then another model was measured.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [
        (parameter, parameter.requires_grad, parameter.grad, None if parameter.grad is None else parameter.grad.clone())
        for parameter in model.parameters()
    ]
    tables = [
        (name, table) for name, module in model.named_modules() for table in (module._parameters, module._buffers)
    ]
    tensors = [
        (f"{name}.{key}".lstrip("."), table, key, tensor, tensor.detach().clone())
        for name, table in tables
        for key, tensor in table.items()
        if tensor is not None
    ]
    changed: list[str] = []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, table, key, tensor, before in tensors:
                # No `get`: the dictionaries of TorchScript modules do not have it.
                if key not in table or table[key] is not tensor or not _is_same(tensor, before):
                    changed.append(name)
                    table[key] = tensor
                    tensor.copy_(before)
            for parameter, is_trained, gradient, before_gradient in parameters:
                parameter.requires_grad_(is_trained)
                parameter.grad = gradient
                if gradient is not None and before_gradient is not None and not _is_same(gradient, before_gradient):
                    gradient.copy_(before_gradient)
        for module, mode in modes:
            module.training = mode
    if changed:
        warnings.warn(
            f"the evaluation changed {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''} of the model; it "
            "was restored, but the number is not only about that model",
            stacklevel=4,
        )


def _is_same(now: Tensor, before: Tensor) -> bool:
    # Bytes instead of values: NaN differs from itself, and 0 equals -0.
    if now.layout != torch.strided or now.is_quantized:
        return now.shape == before.shape and tensor_bytes(now) == tensor_bytes(before)
    return torch.equal(now.detach().reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8))
