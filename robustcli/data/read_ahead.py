"""Compute results ahead in threads, also beyond the end of a sequence."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class ReadAhead(Generic[Request, Result]):
    """Results of requests in order, computed ahead by threads.

    Threads instead of processes, because decoders release the interpreter lock and errors keep their type. Results that
    were started for the next sequence are used if it begins with the same requests, and dropped otherwise.

    Args:
        read: computes the result of a request.
        is_same: returns whether two requests have the same result.
        workers: number of threads, and of results that are computed ahead; 0: compute in the caller.
    """

    def __init__(
        self, read: Callable[[Request], Result], is_same: Callable[[Request, Request], bool], workers: int
    ) -> None:
        self._read, self._is_same, self._workers = read, is_same, workers
        self._begun: deque[tuple[Request, Future[Result]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def results(
        self, requests: Sequence[Request], following: Callable[[], Sequence[Request]] = lambda: ()
    ) -> Iterator[Result]:
        """Yield the result of each request, and start the following ones.

        Args:
            following: returns the requests of the next sequence; called once, after all others were started.
        """
        if self._workers == 0:
            yield from map(self._read, requests)
            return
        waiting = self._matching(requests)
        try:
            for request in requests[len(waiting) :]:
                waiting.append(self._submitted(request))
                if len(waiting) > self._workers:
                    yield waiting.popleft()[1].result()
            upcoming = following()[: self._workers] if requests else ()
            self._begun.extend(self._submitted(request) for request in upcoming)
            while waiting:
                yield waiting.popleft()[1].result()
        except BaseException:
            # Also if the caller stops early: running reads finish and waiting ones are canceled.
            _cancel(waiting)
            _cancel(self._begun)
            raise
        finally:
            if not self._begun:
                self._stop()

    def _matching(self, requests: Sequence[Request]) -> deque[tuple[Request, Future[Result]]]:
        """Return started reads that match the first requests."""
        begun, self._begun = self._begun, deque()
        if len(begun) <= len(requests) and all(
            self._is_same(mine, wanted) for (mine, _), wanted in zip(begun, requests, strict=False)
        ):
            return begun
        _cancel(begun)
        return deque()

    def _submitted(self, request: Request) -> tuple[Request, Future[Result]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="read")
        return request, self._pool.submit(self._read, request)

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _cancel(waiting: deque[tuple[Request, Future[Result]]]) -> None:
    while waiting:
        waiting.popleft()[1].cancel()
