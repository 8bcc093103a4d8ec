"""Choose and describe the device."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robustcli.errors import RobustCliError, shortened
from robustcli.registry.types import DEVICE


def choose_device(name: str, where: str = "--device") -> torch.device:
    """Return the device of a name; a missing GPU is an error, with no fallback to the CPU.

    Args:
        where: option or key that names it, for messages.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(DEVICE, name):
        raise RobustCliError(f"{where}: '{shortened(name)}' is not one of auto, cpu, cuda, cuda:i")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RobustCliError(
            f"{where}: '{name}': this machine has {torch.cuda.device_count()} GPUs for torch; write auto"
        )
    return device


def describe_device(device: torch.device) -> str:
    """Return a description of the device, for provenance."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


@contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """Let cuDNN time its algorithms for every shape and use the fastest, which pays where shapes repeat.

    Algorithms differ in rounding, so two trainings on a GPU may differ in the last digits.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (
        device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    )
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
