"""Fingerprints: digests of everything that the findings of an evaluation depend on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import robustcli
from robustcli.data.images import AnyImages, chunks_of
from robustcli.errors import RobustCliError
from robustcli.models.digest import code_of, network_digest, tensor_bytes, weights_digest
from robustcli.registry.catalog import catalog
from robustcli.specs.renamed import current, former
from robustcli.threat.threat import ThreatModel

# Code that decides which images survive; other changes leave findings unchanged.
_DECIDING = (
    "attacks/*.py",
    "data/corruption_*.py",
    "data/images.py",
    "evaluators/*.py",
    "evaluation/certificates.py",
    "evaluation/evaluate.py",
    "evaluation/evidence.py",
    "evaluation/gather.py",
    "evaluation/gradient.py",
    "evaluation/passes.py",
    "evaluation/confirm.py",
    "evaluation/restore.py",
    "evaluation/run_attack.py",
    "evaluation/searches.py",
    "preprocessors/*.py",
    "runtime/held_casts.py",
    "runtime/memory_format.py",
    "runtime/precision.py",
    "statistics.py",
    "threat/*.py",
)


def fingerprint(
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    evaluator: str,
    parameters: Mapping[str, Any],
    seed: int,
    files: Sequence[str] = (),
) -> dict[str, str]:
    """Digests of everything that findings depend on, by name.

    `batch_size` is left out everywhere, because it changes only the cost.

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
    """Evaluator with its settings, under their former names, except settings that do not affect findings."""
    return _in_one_line(former({"name": name, **_without_batch_size(parameters)}))


def in_present_names(text: str) -> str:
    """Text of `evaluator_text` with present names, to be printed; other texts stay as they are."""
    name, _, settings = text.partition(" ")
    try:
        return _in_one_line(current({"name": name, **json.loads(settings)}))
    except (ValueError, TypeError):
        return text


def _in_one_line(words: Mapping[str, Any]) -> str:
    """Return a name and its settings."""
    settings = {key: value for key, value in words.items() if key != "name"}
    return f"{words['name']} {json.dumps(settings, sort_keys=True)}"


def images_digest(x: AnyImages, y: Tensor) -> str:
    """SHA-256 of images and labels."""
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}\n".encode())
    for part in chain(chunks_of(x), [y]):
        digest.update(tensor_bytes(part))
    return digest.hexdigest()


def files_digest(paths: Sequence[str]) -> str:
    """SHA-256 of the contents of files.

    Raises:
        RobustCliError: a file cannot be read.
    """
    try:
        return _digest(b"".join(_digest(Path(path).read_bytes()).encode() for path in paths))
    except OSError as error:
        raise RobustCliError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _without_batch_size(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_batch_size(item) for key, item in value.items() if key != "batch_size"}
    return [_without_batch_size(item) for item in value] if isinstance(value, list) else value


@cache
def code_digest() -> str:
    """SHA-256 of the code that decides which images survive, including attacks and evaluators of other packages.

    Comments and docstrings do not count.
    """
    folder = Path(robustcli.__file__).parent
    files = sorted(path for pattern in _DECIDING for path in folder.glob(pattern))
    members = [member for family in ("attacks", "evaluators", "preprocessors") for member in catalog(family).values()]
    files += sorted({member.path for member in members if folder not in member.path.parents})
    return _digest(b"".join(path.name.encode() + code_of(path) for path in files))
