"""The most memory that this process has held so far."""

import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """On a GPU what torch's allocator held at most; else the largest resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def device_bytes(device: torch.device) -> int | None:
    """All memory of a GPU; None for the CPU, whose other processes come and go."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
