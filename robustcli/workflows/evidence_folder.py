"""The folder of stored results that are given as a folder, a zip archive or a repository of the Hugging Face Hub."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustcli.errors import RobustCliError
from robustcli.models.schemes.hf import snapshot
from robustcli.store.results import only_results
from robustcli.store.search import run_folders

_HUB = "hf:"


@contextmanager
def evidence_folder(text: str) -> Iterator[Path]:
    """Yield the folder with the results; an archive is unpacked for the time of the context.

    Args:
        text: folder of a run or of an evaluation, .zip file with one, or hf:ORG/REPO.

    Raises:
        RobustCliError: the archive or the repository cannot be read, or has no or several results.
    """
    if text.startswith(_HUB):
        yield snapshot(text.removeprefix(_HUB))
        return
    path = Path(text)
    if path.suffix.lower() != ".zip" or not path.is_file():
        yield only_results(path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with zipfile.ZipFile(path) as archive:
                # extractall makes names that lead out of the folder harmless.
                archive.extractall(temporary)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise RobustCliError(f"{path}: cannot be unpacked: {error}") from error
        found = [folder for folder in run_folders(Path(temporary)) if (folder / "results.json").is_file()]
        if len(found) != 1:
            shown = ", ".join(folder.relative_to(temporary).as_posix() for folder in found[:5])
            raise RobustCliError(
                f"{path}: found {len(found)} files results.json{f' ({shown})' if found else ''}; expected one, in the "
                "folder of a run or of an evaluation"
            )
        yield found[0]
