"""Recognize errors of running out of memory."""

import torch

# Parts of RuntimeErrors for which torch has no class: of its allocator for the CPU, of tensors with more bytes than can
# be counted, of allocations on a GPU outside its allocator, and of libraries that need memory of their own.
_TEXTS = (
    "DefaultCPUAllocator",
    "Storage size calculation overflowed",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)
