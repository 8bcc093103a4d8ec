"""Settings of the memory allocator."""

import ctypes
import sys

# Options of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROWTH = 64 * 2**20


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
