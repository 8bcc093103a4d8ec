"""Digests of a network's weights and code."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers.

    TorchScript that is frozen holds its weights as constants of its code; those count too.
    """
    digest = hashlib.sha256()
    for name, value in (*sorted(model.state_dict().items()), *_constants(model)):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def _constants(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for place, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "forward"):
            constants = module.code_with_constants[1].const_mapping
            for name, value in sorted(constants.items()):
                if isinstance(value, Tensor):
                    yield f"{place}:{name}", value


def network_digest(model: nn.Module) -> str:
    """SHA-256 of what a network is beside its weights: its modules, and the code that their classes are written in.

    Of torch's own modules the name says enough; TorchScript brings its code along. What code elsewhere does, such as
    a function that a class calls from another file, is not seen.
    """
    digest = hashlib.sha256(str(model).encode())
    files = set()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            digest.update(str(getattr(module, "code", "")).encode())
        elif type(module).__module__.partition(".")[0] != "torch":
            files.add(_file_of(type(module)))
    for path in sorted(path for path in files if path is not None):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _file_of(kind: type) -> Path | None:
    """Where a class is written; None where it is in no file."""
    name = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(name) if name is not None and Path(name).is_file() else None


def tensor_bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return plain.numpy().tobytes()
