"""Several processes for one evaluation: each attacks its own images, and the last one merges the results.

Noise depends on the image and the journal belongs to the evaluation, so each process finds the same as a single one
would, and merging means continuing with the journal.
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
    """Return the device of a share: GPUs in turn if `device` is auto or cuda."""
    gpus = torch.cuda.device_count()
    return f"cuda:{local_rank(share[0]) % gpus}" if gpus and device in ("auto", "cuda") else device


def require_processors(option: str, count: int, device: str) -> None:
    """Raise for more processes than processors, which fill the memory and no longer respond, if they use the CPU.

    Args:
        option: option that names the number of processes.
        device: type or name of their device.
    """
    processors = os.cpu_count() or 1
    if count > processors and (device == "cpu" or not torch.cuda.is_available()):
        raise RobustCliError(
            f"{option} {count}: the work is done on the CPU, and this machine has {processors} processors; expected at "
            f"most {processors}"
        )


def in_processes(work: Callable[[Any, Share], None], wish: Any, count: int) -> None:
    """Call work(wish, (i, count)) in `count` processes at once, which share the cores of a CPU.

    Args:
        work: a function at the top level of a module.
        wish: a value that can be pickled.

    Raises:
        RobustCliError: one of them failed; its output is on the error stream. The others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_share, args=(work, wish, (number, count))) for number in range(count)]
    try:
        for process in processes:
            process.start()
        running = {process.sentinel: process for process in processes}
        while running:
            # Wait for any process: if one fails, the others are stopped.
            for sentinel in wait(list(running)):
                process = running.pop(cast("int", sentinel))
                process.join()
                if process.exitcode:
                    raise RobustCliError(
                        f"a worker ended with exit code {process.exitcode}; its findings so far are kept; run the same "
                        "command again to resume"
                    )
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()


def _end_with_parent() -> None:
    """End this process when its parent is gone, so that it does not work next to a resumed one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _share(work: Callable[[Any, Share], None], wish: Any, share: Share) -> None:
    _end_with_parent()
    # The processors that this process may use, which may be fewer than the machine's.
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
        # The first process reports failures: it stops its workers if one fails, and a terminal interrupts all of them.
        sys.exit(3)
