"""Find out in seconds if a server can be reached, because clients of model hubs retry for minutes."""

import importlib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from threading import Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

_SECONDS = 5.0


def unreachable(url: str) -> str | None:
    """Return why the server of an address cannot be reached, directly or through a proxy; None if it answers."""
    found: list[str | None] = []
    # In a thread, because looking up a name has no timeout.
    thread = Thread(target=lambda: found.append(_reason(url)), daemon=True)
    thread.start()
    thread.join(_SECONDS + 1)
    return found[0] if found else _no_answer()


@contextmanager
def hub_or_its_cache() -> Iterator[str | None]:
    """Inside, huggingface_hub uses its cache only if the Hub cannot be reached; yield the reason, or None."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        yield "HF_HUB_OFFLINE is set"
        return
    reason = unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = reason is not None
    try:
        yield None if reason is None else f"{constants.ENDPOINT}: {reason}"
    finally:
        constants.HF_HUB_OFFLINE = False


def _reason(url: str) -> str | None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return None
    try:
        urlopen(Request(f"{parts.scheme}://{parts.netloc}/", method="HEAD"), timeout=_SECONDS).close()
    except HTTPError as error:
        error.close()
    except URLError as error:
        # The server answers, but not as is expected; the client that follows says more.
        if not isinstance(error.reason, ssl.SSLError):
            return _no_answer() if isinstance(error.reason, TimeoutError) else _said(error.reason)
    except TimeoutError:
        return _no_answer()
    except OSError as error:
        return _said(error)
    except (HTTPException, ValueError):
        pass
    return None


def _said(reason: object) -> str:
    return (reason.strerror if isinstance(reason, OSError) else None) or str(reason)


def _no_answer() -> str:
    return f"no answer within {_SECONDS:g} s"
