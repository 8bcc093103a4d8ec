"""Requests to stop: one signal waits for a safe moment, a second one does not."""

import signal

import pytest

from robustcli.errors import Interrupted
from robustcli.runtime import signals
from robustcli.runtime.signals import stop_requests


def test_a_second_signal_stops_at_once() -> None:
    with stop_requests() as stop, stop.held():
        signal.raise_signal(signal.SIGINT)
        assert stop.is_made
        with pytest.raises(Interrupted, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_that_is_passed_on_twice_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_requests() as stop, stop.held():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_made
        monkeypatch.setattr(signals, "_REPEATED", 0.0)
        with pytest.raises(Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
