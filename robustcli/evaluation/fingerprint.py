"""What the findings of an evaluation depend on, as short texts that can be compared."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robustcli
from robustcli.errors import RobustCliError
from robustcli.threat import ThreatModel

# The code that decides who survives; a change elsewhere leaves findings as they are.
_DECIDING = (
    "attacks/*.py",
    "evaluators/*.py",
    "evaluation/evaluate.py",
    "evaluation/evidence.py",
    "evaluation/isolation.py",
    "evaluation/judgement.py",
    "evaluation/proposal.py",
    "evaluation/strikes.py",
    "formats.py",
    "hyperplane.py",
    "noise.py",
    "precision.py",
    "threat.py",
)


def fingerprint(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    evaluator: str,
    parameters: Mapping[str, Any],
    seed: int,
    files: Sequence[str] = (),
) -> dict[str, str]:
    """All that findings depend on, by name.

    `batch_size` is left out wherever it stands: it changes cost, not findings.

    Args:
        files: paths of files that the evaluator reads.
    """
    return {
        "weights": weights_digest(model),
        "network": network_digest(model),
        "images": images_digest(x, y),
        "threat": str(threat),
        "evaluator": evaluator_text(evaluator, parameters),
        "seed": str(seed),
        "code": code_digest(),
        **({"files": files_digest(files)} if files else {}),
    }


def evaluator_text(name: str, parameters: Mapping[str, Any]) -> str:
    """An evaluator with its settings, without those that change no finding."""
    return f"{name} {json.dumps(_without_batch_size(parameters), sort_keys=True)}"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers.

    TorchScript that is frozen holds its weights as constants of its code; those count too.
    """
    digest = hashlib.sha256()
    for name, value in (*sorted(model.state_dict().items()), *_constants(model)):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
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


def images_digest(x: Tensor, y: Tensor) -> str:
    """SHA-256 of images and labels."""
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}\n".encode())
    for part in (*torch.split(x, 1000), y):
        digest.update(_bytes(part))
    return digest.hexdigest()


def files_digest(paths: Sequence[str]) -> str:
    """SHA-256 of the contents of files.

    Raises:
        RobustCliError: one cannot be read.
    """
    try:
        return _digest(b"".join(_digest(Path(path).read_bytes()).encode() for path in paths))
    except OSError as error:
        raise RobustCliError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return plain.numpy().tobytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _without_batch_size(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_batch_size(item) for key, item in value.items() if key != "batch_size"}
    return [_without_batch_size(item) for item in value] if isinstance(value, list) else value


@cache
def code_digest() -> str:
    """SHA-256 of the files that decide who survives."""
    folder = Path(robustcli.__file__).parent
    files = sorted(path for pattern in _DECIDING for path in folder.glob(pattern))
    return _digest(b"".join(path.name.encode() + path.read_bytes() for path in files))
