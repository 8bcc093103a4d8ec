"""Without a network, names of published models fail in seconds, and files in a cache are used."""

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import pytest
import torch
from servers import Quiet, serving

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.models.download import download
from robustcli.models.schemes import hf, timm
from robustcli.runtime import network
from robustcli.runtime.network import hub_or_its_cache, unreachable


@pytest.fixture
def nowhere() -> str:
    """Address of a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Refusing(Quiet):
    """A server that answers every request with an error."""

    def do_HEAD(self) -> None:
        self.answer(403)


def test_a_server_that_answers_anything_can_be_reached() -> None:
    for handler in (Refusing, BaseHTTPRequestHandler):
        with serving(handler) as address:
            assert unreachable(f"{address}/file?id=1") is None
    assert unreachable("file:///etc/hosts") is None


def test_a_server_that_cannot_be_reached_is_reported(nowhere: str) -> None:
    assert unreachable(f"{nowhere}/file") == "Connection refused"


def test_a_server_that_does_not_answer_is_reported_in_time(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SECONDS", 0.2)
    assert unreachable(silent) == "no answer within 0.2 s"


def test_a_name_that_is_looked_up_forever_is_reported_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SECONDS", 0.2)
    released = Event()

    def looking(*_: object, **__: object) -> None:
        released.wait(5)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", looking)
    begun = time.monotonic()
    assert unreachable("http://model.hub/") == "no answer within 0.2 s"
    assert time.monotonic() - begun < 4
    released.set()


def test_names_of_the_hub_fail_at_once_without_a_network(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("timm")
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("tried again"))
    for fetch in (lambda: hf.find("org/unseen", None), lambda: hf.snapshot("org/unseen")):
        with pytest.raises(
            RobustCliError, match=rf"hf:org/unseen: not in the cache, .* \({nowhere}: Connection refused"
        ):
            fetch()
    with pytest.raises(RobustCliError, match=rf"cannot be downloaded: {nowhere}: Connection refused; .* --weights"):
        timm.Timm("resnet18").load(ImageShape(3, 224, 224, 1000), torch.device("cpu"))
    assert not constants.HF_HUB_OFFLINE


def test_the_hub_is_used_if_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(Refusing) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with hub_or_its_cache() as reason:
            assert (reason, constants.HF_HUB_OFFLINE) == (None, False)


def test_a_download_says_what_was_tried_and_what_to_do(
    nowhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RobustCliError, match=r"cannot be downloaded from .*: Connection refused; .* --weights$"):
        download(f"{nowhere}/net.pt", tmp_path / "net.pt", "the model")
    assert capsys.readouterr().err == ""
