"""Digest chain of stored results, which binds spec, weights, data, settings, files and numbers.

Every link is the SHA-256 of one content, and the digest of the chain combines all links in order. Changing a content
after the results were written breaks a link; recomputing the links changes the digest, which a signature protects.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from robustcli.errors import RobustCliError
from robustcli.store.files import file_digest
from robustcli.store.jobs import FOLDER as JOB_FOLDER
from robustcli.store.results import Chain, EvalResults, RunResults

RESULTS, SIGNATURE = "results.json", "results.json.sig"
# Not part of a result: the lock of the folder, the index of `robust runs`, and the mark of half-written files.
_LEFT_OUT = (RESULTS, SIGNATURE, "lock", ".robust-index.json")
_HALF_WRITTEN = ".writing"
_Results = TypeVar("_Results", RunResults, EvalResults)


def chained(folder: Path, results: _Results, weights: str) -> _Results:
    """Return results with the chain that binds them to the other files of their folder.

    Args:
        folder: folder of the run or evaluation, with all files but results.json.
        weights: digest of the evaluated weights.
    """
    return results.model_copy(update={"chain": chain_of(folder, results.to_json(), weights)})


def chain_of(folder: Path, raw: Mapping[str, Any], weights: str) -> Chain:
    """Return the chain of the current files of a folder.

    Args:
        raw: content of results.json; a chain in it is ignored.
        weights: digest of the evaluated weights.
    """
    settings = {key: value for key, value in raw.items() if key not in ("chain", "data", "evaluations")}
    links = {
        "subject" if "subject" in raw else "spec.yaml": _spec(folder, raw),
        "weights": weights,
        "data": _digest(raw.get("data")),
        "settings": _digest(settings),
    }
    for path in _files(folder):
        links.setdefault(path.relative_to(folder).as_posix(), file_digest(path))
    evaluations = raw.get("evaluations")
    if isinstance(evaluations, Mapping):
        links |= {f"evaluation {key}": _digest(value) for key, value in evaluations.items()}
    return Chain(links=links, digest=folded(links))


def broken_links(stated: Chain, found: Chain) -> tuple[list[str], list[str]]:
    """Compare a stored chain with the one of the files as they are now.

    Returns:
        Problems, one line each; and the names of files that are not in the chain, or no longer exist.
    """
    changed = [name for name, link in stated.links.items() if found.links.get(name, link) != link]
    gone = [name for name in stated.links if name not in found.links]
    new = [name for name in found.links if name not in stated.links]
    problems = [
        *(f"digest chain: {name} was changed after the results were written" for name in changed),
        *(f"digest chain: {name} is no longer in results.json" for name in gone if not _is_file(name)),
        *(f"digest chain: {name} was added after the results were written" for name in new if not _is_file(name)),
    ]
    if folded(stated.links) != stated.digest:
        problems.append("digest chain: its digest does not follow from its links")
    return problems, [
        *(f"{name} (missing)" for name in gone if _is_file(name)),
        *(f"{name} (added later)" for name in new if _is_file(name)),
    ]


def folded(links: Mapping[str, str]) -> str:
    """Digest of a chain: every link hashed with the digest of those before it."""
    digest = ""
    for name, link in links.items():
        digest = hashlib.sha256(f"{digest}\n{name}\n{link}".encode()).hexdigest()
    return digest


def _is_file(name: str) -> bool:
    return not name.startswith("evaluation ") and name not in ("subject", "weights", "data", "settings")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name, places = path.name, path.relative_to(folder).parts[:-1]
        # Files of a job, and of a journal that could not be removed while it was in use.
        is_of_work = places[:1] == (JOB_FOLDER,) or any(place.endswith(".journal") for place in places)
        if path.is_file() and not is_of_work and name not in _LEFT_OUT and _HALF_WRITTEN not in name:
            yield path


def _spec(folder: Path, raw: Mapping[str, Any]) -> str:
    if "subject" in raw:
        return _digest(raw["subject"])
    if not (folder / "spec.yaml").is_file():
        raise RobustCliError(f"{folder / 'spec.yaml'}: no such file; expected the spec of the run")
    return file_digest(folder / "spec.yaml")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
