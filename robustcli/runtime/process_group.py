"""Meet the other processes that torchrun started, and leave them: at the end, or after an error in one of them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from robustcli.errors import Interrupted, RobustCliError, in_one_line, shortened
from robustcli.runtime.ranks import share_of_torchrun

# Shares of an evaluation may end hours apart. Lost processes are noticed at once, by their closed connections.
_PATIENCE = timedelta(days=14)
# Timeout for all processes to appear, and time between attempts to reach the first one.
_START, _RETRY = timedelta(minutes=30), timedelta(seconds=5)
# Seconds in which a process that failed has exited.
_LEAVING = 10.0


def backend(device_type: str) -> str:
    """Return the backends of torch.distributed by device; decisions always use the CPU."""
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"


@contextmanager
def joined(device_type: str = "cpu") -> Iterator[None]:
    """Connect the processes that torchrun started, inside the context; does nothing with one process.

    Raises:
        Interrupted: another process ended.
        RobustCliError: the address of the first process is not set, the processes cannot meet there, or only some of
            them use a GPU.
    """
    if share_of_torchrun() is None:
        yield
        return
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if lacking:
        raise RobustCliError(
            f"RANK and WORLD_SIZE are set without {' and '.join(lacking)}, which torchrun sets too; start with "
            "torchrun, or unset RANK for one process"
        )
    _meet(device_type)
    try:
        yield
    except BaseException as error:
        _leave_at_once(device_type)
        if isinstance(error, RuntimeError) and _is_of_connection(error):
            _let_the_cause_end_first()
            raise Interrupted(
                f"another process of this command ended, so this one ends too ({in_one_line(error)})"
            ) from error
        raise
    dist.destroy_process_group()


def _meet(device_type: str) -> None:
    """Connect this process with the others."""
    try:
        # The first process may serve the shared store, which must stay until the end.
        shared, number, count = next(rendezvous("env://", timeout=_START))
        store = _new_store(shared, number)
        _require_same_devices(store, number, count, device_type)
        dist.init_process_group(backend(device_type), store=store, rank=number, world_size=count, timeout=_PATIENCE)
    except (dist.DistError, ValueError) as error:
        raise RobustCliError(
            f"MASTER_ADDR={shortened(os.environ['MASTER_ADDR'])} MASTER_PORT={shortened(os.environ['MASTER_PORT'])}: "
            f"the processes cannot meet there ({in_one_line(error)}); expected the address of the first process and a "
            "free port, as torchrun sets them"
        ) from error


def _require_same_devices(store: Store, number: int, count: int, device_type: str) -> None:
    """Raise in all processes if only some use a GPU; they would wait for each other in different backends."""
    store.set(f"device/{number}", device_type)
    keys = [f"device/{other}" for other in range(count)]
    store.wait(keys, _START)
    found = [store.get(key).decode() for key in keys]
    store.set(f"has_read/{number}", "")
    if not number:
        # This process serves the store, and after an error it ends at once.
        store.wait([f"has_read/{other}" for other in range(count)], _START)
    if len(set(found)) > 1:
        without = ", ".join(str(other) for other, kind in enumerate(found) if kind == "cpu")
        raise RobustCliError(
            f"train.device: only some of the {count} processes have a GPU (none in process {without}); expected GPUs "
            "on every machine; write train.device: cuda to find the machine without one, or cpu"
        )


def _leave_at_once(device_type: str) -> None:
    """Leave the group after an error, without waiting for the other processes.

    NCCL ends in an orderly way only in all processes together, and the others wait for this one in a collective.
    """
    if device_type == "cuda" and dist.group.WORLD is not None:
        # Older versions of torch have no `abort`.
        with suppress(AttributeError, RuntimeError):
            dist.group.WORLD.abort()
    dist.destroy_process_group()


def _let_the_cause_end_first() -> None:
    """Give the process that failed time to exit, because torchrun passes on the exit code of the first one to end.

    It ends this process as soon as it has seen the other one.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(_LEAVING)


def _new_store(shared: Store, number: int) -> TCPStore:
    """Return a store in which the processes find each other.

    torchrun's own store outlives the processes, so restarted ones would find the addresses of their predecessors there.
    It only announces the address of a new store in the first process.
    """
    host, key = os.environ["MASTER_ADDR"], "robustcli/port"
    if number == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
        shared.set(key, str(store.port))
        return store
    end = time.monotonic() + _START.total_seconds()
    while True:
        port = int(shared.get(key))
        try:
            store = TCPStore(host, port, is_master=False, timeout=_RETRY)
        except dist.DistError:
            if time.monotonic() > end:
                raise
            time.sleep(_RETRY.total_seconds() / 10)
        else:
            store.set_timeout(_PATIENCE)
            return store


def _is_of_connection(error: RuntimeError) -> bool:
    words = ("connection", "socket", "gloo", "nccl", "peer")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
