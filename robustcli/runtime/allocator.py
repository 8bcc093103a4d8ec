"""Settings of the memory allocator."""

import ctypes
import sys
from functools import cache

# Options of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH = 64 * 2**20
# Maximum freed memory in bytes that an evaluation keeps between batches.
_MOST_KEPT = 2**29


def keep_freed_memory() -> bool:
    """Keep freed memory for later allocations instead of returning it to the system at once.

    By default glibc returns large blocks when they are freed, and every pass through a network frees its activations.
    The system then clears the same pages again in every pass, which takes up to a fifth of a training step on a CPU.
    Results do not change, but the process never shrinks.

    Returns:
        True if the setting is possible, which is only with the allocator of glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl has no mallopt; jemalloc and tcmalloc, if preloaded, keep memory by default.
    if mallopt is None:
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _GROWTH))
    return all(mallopt(option, value) == 1 for option, value in options)


class _Usage(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it can report freed memory and return it to the system."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return None
    library.mallinfo2.restype = _Usage
    library.malloc_trim.argtypes = (ctypes.c_size_t,)
    return library


def release_freed_memory(most: int = _MOST_KEPT) -> None:
    """Return freed memory to the system if more than `most` bytes of it are kept.

    Freed blocks often do not fit later requests, so memory kept by `keep_freed_memory` would grow in an evaluation of
    large images, whose batches shrink as images are broken. Between batches, returning memory costs
    little.
    """
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > most:
        library.malloc_trim(0)
