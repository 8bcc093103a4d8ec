"""Requests to stop: one signal waits for a safe moment, a second one does not."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from robustcli.errors import Interrupted
from robustcli.runtime import signals
from robustcli.runtime.signals import StopRequest, stop_requests


@contextmanager
def held() -> Iterator[StopRequest]:
    """Signals wait inside, and what they asked for is ignored at the end."""
    with stop_requests() as stop, suppress(Interrupted), stop.held():
        yield stop


def test_a_second_signal_stops_at_once() -> None:
    with held() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_made
        with pytest.raises(Interrupted, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_that_is_passed_on_twice_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with held() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_made
        monkeypatch.setattr(signals, "_REPEATED", 0.0)
        with pytest.raises(Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)


def test_the_end_of_the_terminal_is_one_request_that_can_be_ignored() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with held() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert stop.is_made
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        # As nohup does.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with held() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_made
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_the_last_check_stops_before_what_follows() -> None:
    """For example while a live log is closed after the last epoch, before hours of evaluation."""
    done: list[str] = []

    def run() -> None:
        with stop_requests() as stop:
            with stop.held():
                signal.raise_signal(signal.SIGTERM)
                done.append("closed")
            done.append("evaluated")

    with pytest.raises(Interrupted, match="stopped by a signal"):
        run()
    assert done == ["closed"]
