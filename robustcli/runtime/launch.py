"""Start one command in several processes of this machine, as torchrun does."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from robustcli.errors import Interrupted
from robustcli.runtime.signals import STOPPING


def launch(words: Sequence[str], count: int) -> int:
    """Run `python -m robustcli` with these words in `count` processes and return the exit code of the first to fail.

    Signals are passed to all of them. The cores of a CPU are shared, unless OMP_NUM_THREADS is set.

    Raises:
        Interrupted: a signal ended this process or one of the others.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    # Older versions of torch do not read it.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOPPING))
    # Each process prints its own error.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    passed_on: dict[str, Any] = {}
    # torch would handle it also under nohup, and end the training together with the terminal.
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    if is_nohup and any(field.name == "signals_to_handle" for field in fields(LaunchConfig)):
        passed_on = {"signals_to_handle": "SIGTERM,SIGINT,SIGQUIT"}
    # Equivalent to --standalone of torchrun.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **passed_on,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "robustcli", *words)
    except SignalException as stopped:
        raise Interrupted(f"stopped by {stopped.sigval.name}") from stopped
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise Interrupted(f"process {rank} was ended by {name}") from failed
        return failure.exitcode
    return 0
