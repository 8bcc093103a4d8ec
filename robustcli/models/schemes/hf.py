"""hf:ORG/REPO[/FILE][@REVISION], a file of the Hugging Face Hub: a checkpoint, TorchScript, or weights.

huggingface_hub downloads it into its own cache; HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as usual.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, in_one_line, suggest
from robustcli.models.schemes import NamedFile, Scheme
from robustcli.models.source import ModelSource
from robustcli.runtime.network import hub_or_its_cache

# Files to search in a repository if none is named; `robust push` writes the first one.
_USUAL = ("checkpoints/best.pt", "best.pt", "model.pt", "model.safetensors", "pytorch_model.bin", "weights.pt")
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".tar")


def find(name: str, weights: str | None) -> ModelSource | NamedFile:
    """Find a file of a repository, downloaded or from the cache.

    Raises:
        RobustCliError: the name is invalid, huggingface_hub is missing, there is no such repository or file, or
            there is no network and the file is not in the cache.
    """
    if weights is not None:
        raise RobustCliError(f"--weights: hf:{name} names a file itself; remove the option")
    path, _, revision = name.partition("@")
    words = path.split("/")
    if len(words) < 2 or not all(words):
        raise RobustCliError(f"hf:{name}: write hf:ORG/REPO, or hf:ORG/REPO/FILE, with @REVISION at the end if needed")
    repository, file = "/".join(words[:2]), "/".join(words[2:])
    found = _fetch(repository, file or None, revision or None)
    title = f"hf:{repository}/{found[1]}"
    return NamedFile(path=found[0], title=title, notes=(f"{found[1]}: from hf:{repository}, commit {found[2]}",))


def snapshot(name: str) -> Path:
    """Return a folder with all files of a repository, downloaded or from the cache.

    Args:
        name: ORG/REPO, with @REVISION at the end if needed.

    Raises:
        RobustCliError: there is no such repository, or it cannot be downloaded.
    """
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise RobustCliError(f"hf:{name}: write hf:ORG/REPO")
    with _hub_or_its_cache(f"hf:{name}") as package:
        return Path(package.snapshot_download(repository, revision=revision or None))


def hub(name: str) -> Any:
    """Return the package huggingface_hub.

    Raises:
        RobustCliError: it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise RobustCliError(f"{name}: needs the package huggingface_hub: pip install huggingface_hub") from error


def _fetch(repository: str, file: str | None, revision: str | None) -> tuple[Path, str, str]:
    """Return path, name and commit of a file."""
    name = f"hf:{repository}" + (f"/{file}" if file else "")
    candidates = (file,) if file else _USUAL
    with _hub_or_its_cache(name) as package:
        errors = importlib.import_module("huggingface_hub.errors")
        for candidate in candidates:
            try:
                path = Path(package.hf_hub_download(repository, candidate, revision=revision))
            except errors.LocalEntryNotFoundError:
                if candidate == candidates[-1]:
                    raise
                continue
            except errors.EntryNotFoundError:
                continue
            # Snapshots are kept in a folder named by their commit.
            parts = path.parts
            commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"
            return path, candidate, commit[:12]
        files = _files(package, repository, revision)
    if file is not None:
        raise RobustCliError(f"{name}: the repository has no such file{suggest(file, files)}")
    raise RobustCliError(
        f"{name}: has none of the usual files ({', '.join(_USUAL)}); name one: hf:{repository}/FILE"
        f"{suggest('best.pt', files)}"
    )


@contextmanager
def _hub_or_its_cache(name: str) -> Iterator[Any]:
    """Give the package huggingface_hub, which reads its cache without the Hub; errors begin with `name`."""
    package = hub(name)
    errors = importlib.import_module("huggingface_hub.errors")
    reason = None
    try:
        with hub_or_its_cache() as reason:
            yield package
    except errors.LocalEntryNotFoundError as error:
        raise RobustCliError(
            f"{name}: not in the cache, and the Hub cannot be reached ({reason or in_one_line(error)}); without "
            "network access, copy the file here and name its path"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise RobustCliError(
            f"{name}: there is no such repository or revision, or it is private (log in with `hf auth login`)"
        ) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise RobustCliError(f"{name}: cannot be downloaded: {in_one_line(error)}") from error


def _files(package: Any, repository: str, revision: str | None) -> list[str]:
    """Files of a repository that may hold weights."""
    try:
        listed = package.HfApi().list_repo_files(repository, revision=revision)
    except Exception:  # only used for the end of an error message
        return []
    return [file for file in listed if file.endswith(_SUFFIXES)]


SCHEME = Scheme(form="hf:ORG/REPO[/FILE]", find=find, takes_architecture=True)
