"""Download files of models once, and keep them in a cache with their SHA-256."""

import os
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from robustcli import __version__
from robustcli.errors import RobustCliError
from robustcli.runtime.network import unreachable
from robustcli.store.file_kinds import other_kind
from robustcli.store.files import file_digest, replacing, write_text

_CHUNK = 2**20
_SECONDS = 60


def folder() -> Path:
    """Return the cache: the folder in ROBUST_CACHE, or robustcli in the user's cache.

    Raises:
        RobustCliError: the user has no home folder, as in some containers, and no folder is named.
    """
    chosen = os.environ.get("ROBUST_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/robustcli"
    # Not by Path.expanduser, which fails without a home folder.
    path = os.path.expanduser(chosen)
    if path.startswith("~"):
        raise RobustCliError(f"{path}: there is no home folder; set HOME, or ROBUST_CACHE to the folder of the cache")
    return Path(path)


def download(url: str, path: Path, name: str) -> str:
    """Download a file to `path` if it is not there, and return its SHA-256.

    The digest is kept next to the file and compared later. A file that was copied there is used, and its digest is
    recorded.

    Args:
        name: name of the model, for messages.

    Raises:
        RobustCliError: there is no network, the server refuses, the answer is not a file of weights, or the file in the
            cache has changed since it was downloaded.
    """
    record = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        _fetch(url, path, name)
        record.unlink(missing_ok=True)
    digest = file_digest(path)
    if record.is_file():
        known = record.read_text(encoding="utf-8").split()[:1]
        if known != [digest]:
            raise RobustCliError(
                f"{path}: SHA-256 {digest}; {record.name} has {''.join(known)}: the file has changed since it was "
                "downloaded; delete both files to download it again"
            )
    else:
        write_text(record, f"{digest}  {path.name}\n")
    return digest


def _fetch(url: str, path: Path, name: str) -> None:
    if (reason := unreachable(url)) is not None:
        raise _failure(url, path, name, reason)
    print(f"downloading {name} to {path}", file=sys.stderr)
    request = Request(url, headers={"User-Agent": f"robustcli/{__version__}"})
    try:
        with urlopen(request, timeout=_SECONDS) as answer:
            expected = answer.headers.get("Content-Length")
            with replacing(path, f"writing-{os.getpid()}") as file:
                written = 0
                while part := answer.read(_CHUNK):
                    written += file.write(part)
                if expected is not None and written != int(expected):
                    raise HTTPException(f"the answer ended after {written:,} of {int(expected):,} bytes")
    except HTTPError as error:
        error.close()
        raise _failure(url, path, name, f"the server answered {error.code} {error.reason}") from error
    except URLError as error:
        raise _failure(url, path, name, str(error.reason)) from error
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise _failure(url, path, name, str(error) or type(error).__name__) from error
    kind = other_kind(path)
    if kind is not None:
        path.unlink()
        raise _failure(url, path, name, f"the answer is {kind}")


def _failure(url: str, path: Path, name: str, reason: str) -> RobustCliError:
    return RobustCliError(
        f"{name}: cannot be downloaded from {url}: {reason}; without network access, download it elsewhere and copy it "
        f"to {path}, or name the file with --weights"
    )
