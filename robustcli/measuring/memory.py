"""How much memory there is, how much this process has held so far, and what happens where it is not enough."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# What torch's allocator for the CPU says, as a plain RuntimeError.
_CPU_ALLOCATOR = "DefaultCPUAllocator"
_MEMINFO = Path("/proc/meminfo")


class DoesNotFitError(Exception):
    """Memory ran out.

    Args:
        stage: what was being done.
        reason: what the allocator said, in one line.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason = stage, reason


@contextmanager
def fitting(stage: str) -> Iterator[None]:
    """Name what was being done when memory ran out.

    Raises:
        DoesNotFitError: it did, on a GPU or on the CPU.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DoesNotFitError(stage, reason) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator failed; that of the CPU has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_ALLOCATOR in str(error)


def peak_bytes(device: torch.device) -> int:
    """On a GPU what torch's allocator held at most; else the largest resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def free_bytes(device: torch.device) -> int | None:
    """What this process can still have; None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = _MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def device_bytes(device: torch.device) -> int | None:
    """All memory of a GPU; None for the CPU, whose other processes come and go."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
