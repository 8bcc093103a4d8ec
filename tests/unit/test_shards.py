"""A queue of shards: each is attacked once, and a lost process is replaced."""

from pathlib import Path

import pytest
import torch

from robustcli.evaluation import shards
from robustcli.evaluation.journal import FolderJournal
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.evaluation.shards import ShardQueue


def test_two_processes_draw_every_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = ShardQueue(tmp_path, 5)
    first, second = queue.draw(), queue.draw()
    drawn = [next(first), next(second), next(first), next(first)]
    assert (drawn, queue.done) == ([(0, 5), (1, 5), (2, 5), (3, 5)], 2)
    # The first process waits for the shard of the other, which draws the last shard.
    rest = []
    monkeypatch.setattr(shards.time, "sleep", lambda _: rest.extend(second))
    assert [*first] == [(4, 5)]
    assert (rest, queue.done) == ([], 5)
    assert [*queue.draw()] == []


def test_the_shard_of_a_lost_process_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = ShardQueue(tmp_path, 3)
    lost, other = queue.draw(), queue.draw()
    next(lost)
    monkeypatch.setattr(shards.time, "sleep", lambda _: lost.close())
    assert [*other] == [(1, 3), (2, 3), (0, 3)]


@pytest.mark.parametrize(("images", "count"), [(3, 1), (60, 8), (1000, 32), (10_000, 40), (50_000, 200)])
def test_shards_hold_8_to_250_images(images: int, count: int, tmp_path: Path) -> None:
    assert ShardQueue.of(tmp_path, images).count == count


def test_a_journal_returns_outcomes_of_the_requested_images(tmp_path: Path) -> None:
    journal = FolderJournal.open(tmp_path / "a.journal", {})
    for numbers in ((0, 2), (1, 3)):
        n = len(numbers)
        journal.keep(
            AttackOutcome(
                stage="pgd",
                numbers=torch.tensor(numbers),
                is_broken=torch.zeros(n, dtype=torch.bool),
                predictions=torch.zeros(n, dtype=torch.int64),
                margins=torch.zeros(n),
                sizes=torch.zeros(n),
                points=torch.zeros(0, 1, 2, 2),
                forwards=n,
                gradients=n,
                seconds=0.0,
                warnings=(),
            )
        )
    assert [found.numbers.tolist() for found in journal.outcomes("pgd", {3, 7})] == [[1, 3]]
    assert [found.numbers.tolist() for found in journal.outcomes("pgd")] == [[0, 2], [1, 3]]
