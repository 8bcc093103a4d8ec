"""Processes that share an evaluation share the cores that they may use."""

import pytest
import torch

from robustcli.evaluation.workers import Share, _share


@pytest.mark.parametrize(("threads", "count", "expected"), [(6, 2, 3), (6, 4, 1), (1, 4, 1)])
def test_workers_share_the_threads_of_one_process(
    threads: int, count: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the machine: affinity and OMP_NUM_THREADS may hold a process to fewer."""
    taken: list[int] = []
    seen: list[Share] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    _share(lambda _wish, share: seen.append(share), None, (1, count))
    assert (taken, seen) == ([expected], [(1, count)])
