"""Several processes on one evaluation: each attacks its own images, and the last one merges the results.

Noise belongs to the image and the journal to the evaluation, so a share finds what it would find among all images,
and merging is nothing but going on with the journal.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any, cast

import torch

from robustcli.errors import Interrupted, RobustCliError, disk_message
from robustcli.runtime.ranks import Share, local_rank


def device_of(share: Share, device: str) -> str:
    """The device of a share: GPUs in turn where `device` is auto or cuda."""
    gpus = torch.cuda.device_count()
    return f"cuda:{local_rank(share[0]) % gpus}" if gpus and device in ("auto", "cuda") else device


def in_processes(work: Callable[[Any, Share], None], wish: Any, count: int) -> None:
    """Call work(wish, (i, count)) in `count` processes at once, which share the cores of a CPU.

    Args:
        work: a function at the top of a module.
        wish: what can be pickled.

    Raises:
        RobustCliError: one of them failed; what it wrote is on the error stream. The others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_share, args=(work, wish, (number, count))) for number in range(count)]
    try:
        for process in processes:
            process.start()
        running = {process.sentinel: process for process in processes}
        while running:
            # Whoever ends first: the others need not be waited for if it failed.
            for sentinel in wait(list(running)):
                process = running.pop(cast("int", sentinel))
                process.join()
                if process.exitcode:
                    raise RobustCliError(
                        f"a worker ended with exit code {process.exitcode}; what the workers have found is kept, and "
                        "the same command goes on from there"
                    )
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, so that it does not work next to a resumed one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _share(work: Callable[[Any, Share], None], wish: Any, share: Share) -> None:
    _end_with_parent()
    # Of those that torch would take here: fewer than the machine's where this process is held to some of them.
    torch.set_num_threads(max(1, torch.get_num_threads() // share[1]))
    try:
        work(wish, share)
    except RobustCliError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {disk_message(error)}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Interrupted):
        # The first process reports it: it ends its workers when one of them fails, and a terminal asks all of them.
        sys.exit(3)
