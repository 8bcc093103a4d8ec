"""`robust push`: publish a finished run with its model card, on the Hugging Face Hub or in a folder."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from robustcli.errors import RobustCliError, in_one_line
from robustcli.models.build import network_of
from robustcli.models.digest import weights_digest
from robustcli.models.find import checkpoint_in
from robustcli.models.schemes.hf import hub
from robustcli.runtime.network import hub_or_its_cache
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.chain import broken_links, chain_of
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.files import file_digest, read_json, require_empty, write_text
from robustcli.store.provenance import Session, read_provenance
from robustcli.store.results import RunResults, read_run_results
from robustcli.store.runs import RunFolder

_HUB = "hf:"
# Not published: state that only resuming needs, and files about this machine.
_LEFT_OUT = ("last.pt", "lock", ".robust-index.json")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Everything that a model card states.

    Args:
        folder: the run.
        session: the last process that worked on it.
        digests: SHA-256 by subject.
    """

    folder: RunFolder
    spec: ExperimentSpec
    results: RunResults
    session: Session
    digests: dict[str, str]


def read_run(path: Path) -> Published:
    """Read a finished run and compare its files with the digest chain in its results.

    Raises:
        RobustCliError: there is no such run, it is unfinished, or a file was changed after the results were written.
    """
    best = checkpoint_in(path)
    folder = RunFolder(best.parent.parent)
    if not folder.is_finished:
        known = (
            f"is {folder.status()}; finish it with --resume" if folder.spec.is_file() else "is not the folder of a run"
        )
        raise RobustCliError(f"{path}: {known}")
    results = read_run_results(folder.results)
    _, network = network_of(NetworkCheckpoint.read(folder.best), torch.device("cpu"), folder.best)
    weights = weights_digest(network)
    digests = {"checkpoints/best.pt": file_digest(folder.best), "weights": weights, "images": results.data.digest}
    if results.chain is not None:
        problems, _ = broken_links(results.chain, chain_of(folder.path, read_json(folder.results), weights))
        if problems:
            raise RobustCliError(f"{folder.path}: {problems[0]}; `robust verify {folder.path}` lists all problems")
        digests["results (digest chain)"] = results.chain.digest
    return Published(
        folder=folder,
        spec=ExperimentSpec.read_stored(folder.spec),
        results=results,
        session=read_provenance(folder.provenance).sessions[-1],
        digests=digests,
    )


def push(run: Published, target: str, card: str, *, is_private: bool, tell: Callable[[str], None]) -> str:
    """Write a run with its card into a folder, or upload it; return where it is.

    Args:
        target: hf:ORG/REPO, or a new or empty folder.
        card: the model card.
        is_private: create a repository that only its owner can see.
        tell: called before an upload.

    Raises:
        RobustCliError: the folder is not empty, huggingface_hub is missing, or the Hub refuses or cannot be reached.
    """
    if not target.startswith(_HUB):
        _write(run, Path(target), card)
        return target
    repository = target.removeprefix(_HUB)
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise RobustCliError(f"{target}: write hf:ORG/REPO")
    package = hub(target)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        _write(run, folder, card)
        tell(f"uploading to {target}")
        reason = None
        try:
            with hub_or_its_cache() as reason:
                api = package.HfApi()
                api.create_repo(repository, exist_ok=True, private=is_private)
                info = api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message=f"Add {run.spec.name}, seed {run.spec.seed}"
                )
        # The exception for a missing connection depends on the version of the package.
        except Exception as error:
            raise RobustCliError(
                f"{target}: cannot be uploaded: {reason or in_one_line(error)}; log in with `hf auth login`, or "
                f"write the files into a folder: robust push {run.folder.path} FOLDER"
            ) from error
    return str(info.commit_url)


def _write(run: Published, folder: Path, card: str) -> None:
    require_empty(folder)
    for path in sorted(run.folder.path.rglob("*")):
        if path.is_file() and path.name not in _LEFT_OUT and ".writing" not in path.name:
            copy = folder / path.relative_to(run.folder.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    write_text(folder / "README.md", card)
