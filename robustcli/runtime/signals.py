"""Handle SIGINT, SIGTERM and SIGHUP: stop a run at the next point where it can be resumed without loss."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from robustcli.errors import Interrupted

# Signals of programs: of SLURM, of torchrun, and of a terminal that closes or loses its connection.
_OF_PROGRAMS = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
# Seconds in which a second one of them is the same request.
_REPEATED = 10.0
# Seconds that several processes have after a signal until they are killed: enough for an update, the check of an epoch
# and a checkpoint. By default torchrun waits for 30 s.
STOPPING = 300


class StopRequest:
    """State of a request to stop.

    A second signal stops at once. Only a second signal of a program within seconds is taken for the first: SLURM sends
    SIGTERM to every process, and torchrun and srun pass theirs on; shell and system both send SIGHUP.

    Args:
        is_made: a signal asked to stop.
        is_safe_now: a signal stops at once; if false, it only sets `is_made`, which the running code checks.
    """

    def __init__(self) -> None:
        self.is_made = False
        self.is_safe_now = True
        self._since = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the context, a signal only sets `is_made`; at its end, a signal that nothing checked stops."""
        self.is_safe_now = False
        try:
            yield
        finally:
            self.is_safe_now = True
        if self.is_made:
            raise Interrupted("stopped by a signal")

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        is_repeated = number in _OF_PROGRAMS and time.monotonic() - self._since < _REPEATED
        if self.is_safe_now or (self.is_made and not is_repeated):
            # The last checkpoint remains.
            raise Interrupted(f"stopped by {signal.Signals(number).name}")
        if not self.is_made:
            self.is_made, self._since = True, time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handle the signals inside the context, and restore the previous handlers at the end."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [
        number
        for number in (signal.SIGINT, *_OF_PROGRAMS)
        # nohup lets a command ignore the end of its terminal.
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN
    ]
    usual = {number: signal.signal(number, request.take) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
