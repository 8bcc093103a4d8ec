"""Behavior of a network on a few clean images, to check whether a stored result belongs to it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluation.gradient import gives_gradient
from robustcli.evaluation.restore import settled
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import replacing

# Number of images.
_IMAGES = 16
# Length of the step away from each image.
_STEP = 0.03
# Tolerance for other devices, threads and batches, relative to the largest value. Gradients jump at the kink of a ReLU.
_LOGITS, _GRADIENTS = 1e-3, 0.05

Behavior = dict[str, NDArray[np.float32]]


def behavior_of(model: nn.Module, x: Tensor, y: Tensor) -> Behavior:
    """Logits of clean images and of nearby images, and the gradient of the cross-entropy if there is one.

    If logits vary from call to call, nothing can be compared and the arrays are empty.

    Raises:
        EvaluationError: the network fails on these images.
    """
    x, y = x[:_IMAGES], y[:_IMAGES]
    noise = _STEP * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign().to(x.device)
    with settled(model, x.device.type):
        torch.manual_seed(0)
        with torch.no_grad():
            try:
                logits, again, nearby = (model(points) for points in (x, x, (x + noise).clamp(0, 1)))
            except (RuntimeError, TypeError, ValueError) as error:
                raise EvaluationError(f"INVALID: the network fails on {len(x)} images: {error}") from error
        if not isinstance(logits, Tensor) or not _is_near(_array(logits), _array(again), _LOGITS):
            return {}
        return {"logits": _array(logits), "nearby": _array(nearby), "gradients": _gradient(model, x, y)}


def is_same(one: Behavior, other: Behavior) -> bool:
    """Return whether two networks behave the same, up to rounding."""
    tolerances = {"logits": _LOGITS, "nearby": _LOGITS, "gradients": _GRADIENTS}
    return one.keys() == other.keys() and all(_is_near(one[key], other[key], tolerances[key]) for key in one)


def write_behavior(path: Path, behavior: Behavior, mark: str) -> None:
    """Write a behavior next to the results that it belongs to."""
    with replacing(path, mark) as file:
        np.savez(file, allow_pickle=False, **behavior)


def read_behavior(path: Path) -> Behavior:
    """Read a behavior.

    Raises:
        RobustCliError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except UNREADABLE as error:
        raise RobustCliError(f"{path}: cannot be read; remove its folder to evaluate anew") from error


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.float32]:
    """Gradient in the images; empty if the network gives none."""
    if not gives_gradient(model, x):
        return np.zeros(0, dtype=np.float32)
    gradient, _, _ = input_gradient(model, x, LOSSES["ce"], y)
    return _array(gradient)


def _is_near(one: NDArray[np.float32], other: NDArray[np.float32], tolerance: float) -> bool:
    """Return whether the difference of two arrays is at most a share of the first."""
    if one.shape != other.shape:
        return False
    if np.array_equal(one, other, equal_nan=True):
        return True
    return bool(np.linalg.norm(one - other) <= tolerance * np.linalg.norm(one))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
