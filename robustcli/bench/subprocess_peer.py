"""Measure torchattacks in a separate process without any settings of this project.

Settings of this process, such as keeping freed memory, would make torchattacks faster too.
"""

from multiprocessing.connection import Connection
from typing import Any

import torch

from robustcli.bench.baselines import find_package
from robustcli.bench.variants import Request, Variants, choose
from robustcli.bench.worker import Worker, messages
from robustcli.measuring.counters import Counters
from robustcli.measuring.timing import Stopwatch, Timed


class SubprocessPeer(Worker[Any]):
    """Sample of torchattacks' loop in another process, which waits while this one measures.

    Args:
        request: options of the benchmark; the other process uses fp32 and the default memory format.
        steps: gradient steps of the attack.
    """

    def __init__(self, request: Request, steps: int) -> None:
        super().__init__(_serve, request.plain(), steps, torch.get_num_threads())

    def __call__(self, repeats: int) -> float:
        return float(self.ask(repeats))

    def counters(self) -> Counters:
        """Return its passes and its peak memory."""
        found: Counters = self.ask(0)
        return found


def _serve(pipe: Connection, request: Request, steps: int, threads: int) -> None:
    """Answer a number of repeats with the seconds per run, and 0 with the counters."""
    torch.set_num_threads(threads)
    variants = Variants(request, choose(request)[0])
    torchattacks = find_package("torchattacks", [])
    assert torchattacks is not None
    network, step = variants.torchattacks(torchattacks, steps)
    sample = Timed(step, Stopwatch(variants.device))
    for repeats in messages(pipe):
        counters = Counters.of(network, step, request.batch_size, variants.device) if not repeats else None
        pipe.send(sample(repeats) if counters is None else counters)
