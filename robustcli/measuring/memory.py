"""Free and used memory, and one error when it runs out."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from robustcli.runtime.out_of_memory import is_out_of_memory

_MEMINFO = Path("/proc/meminfo")


class DoesNotFitError(Exception):
    """Memory ran out; the text is the message of the allocator, in one line."""


@contextmanager
def fitting() -> Iterator[None]:
    """Raise one error if memory runs out, on a GPU or on the CPU.

    Raises:
        DoesNotFitError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError((str(error).splitlines() or [type(error).__name__])[0]) from error


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory: of torch's allocator on a GPU, of the resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that this process can still allocate; None if unknown."""
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
    """Return the total memory of a GPU; None for a CPU."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
