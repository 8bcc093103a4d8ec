"""Processes that are measured: each waits until it is asked, so that they take turns or run at once."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_Answer = TypeVar("_Answer")


class Worker(Generic[_Answer]):
    """A new process that calls a function with its end of a pipe, and answers messages.

    It has none of the settings of this process, such as keeping freed memory.

    Args:
        serve: function at the top level of a module; it answers each of `messages(pipe)`.
        arguments: its arguments after the pipe; they can be pickled.
    """

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *arguments))
        # Ctrl-C reaches all processes of a terminal; this one ends the others.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()

    def send(self, message: Any) -> None:
        """Send a message, which is not None."""
        self._pipe.send(message)

    def receive(self) -> _Answer:
        """Wait for the answer to the last message."""
        try:
            answer: _Answer = self._pipe.recv()
            return answer
        except EOFError:
            raise RuntimeError("a process that was measured ended; its output is above") from None

    def ask(self, message: Any) -> _Answer:
        """Send a message and wait for its answer."""
        self.send(message)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.terminate()
        with suppress(OSError):  # The process may have failed.
            self._pipe.send(None)
        self._pipe.close()
        self._process.join()


def messages(pipe: Connection) -> Iterator[Any]:
    """Yield the messages to this process until the other one leaves the context of the worker."""
    return iter(pipe.recv, None)
