"""SIGINT and SIGTERM as a wish to stop, which a run grants when it can be resumed without loss."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from robustcli.errors import Interrupted


class StopRequest:
    """Whether a signal asked to stop.

    Args:
        is_safe_now: while true, a signal stops at once; while false, whoever works looks at `is_made`.
    """

    def __init__(self) -> None:
        self.is_made = False
        self.is_safe_now = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal only leaves a mark."""
        self.is_safe_now = False
        try:
            yield
        finally:
            self.is_safe_now = True

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.is_safe_now or self.is_made:
            # A second signal does not wait either; what the last checkpoint holds is kept.
            raise Interrupted(f"stopped by {signal.Signals(number).name}")
        self.is_made = True


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handle both signals inside; outside they do what they did before."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    usual = {number: signal.signal(number, request.take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
