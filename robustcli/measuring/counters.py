"""Counters of a step: passes by kind and peak memory, measured in runs that are not timed."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from robustcli.measuring.passes import passes_by_kind
from robustcli.store.passes import Passes

# Message of the profiler about blocks that were allocated before it started; they do not count.
_OLDER = b"before the profiling started"


@dataclass(frozen=True)
class Counters:
    """Passes and memory of an update.

    Args:
        passes: passes per image of the batch.
        peak_bytes: peak memory of tensors, in addition to the memory before the update.
    """

    passes: Passes
    peak_bytes: int

    @classmethod
    def of(cls, network: nn.Module, step: Callable[[], object], batch_size: int, device: torch.device) -> "Counters":
        """Count passes and memory of a step, which runs three times.

        Args:
            network: network that the step trains.

        Raises:
            RobustCliError: the network has no convolution.
        """
        with passes_by_kind(network) as counter:
            step()
        return cls(counter.per_image(batch_size), peak_of_update(network, step, device))


def peak_of_update(network: nn.Module, step: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory of the second run of an update, which does not allocate buffers of the optimizer.

    Args:
        network: network that is trained; its old gradients are freed before, so that the new ones count.
    """
    step()
    network.zero_grad(set_to_none=True)
    return peak_of_run(step, device)


def peak_of_run(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory of tensors while `run` runs, in addition to the memory before.

    On a GPU torch's allocator counts it. On a CPU it is the sum of the allocations that torch's profiler records, so
    freed memory that the process keeps, and memory of other objects, do not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - held
    # Suppress messages of the profiler on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with _quieter(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as found:
        run()
    with TemporaryDirectory(prefix="robust-bench-") as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    allocations = (event for event in events if event["name"] == "[memory]")
    held = peak = 0
    for event in sorted(allocations, key=lambda event: float(event["ts"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextmanager
def _quieter() -> Iterator[None]:
    """Buffer standard error, also of C++, and print it at the end without the messages about older blocks."""
    sys.stderr.flush()
    own = os.dup(2)
    with TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            buffer.seek(0)
            for line in buffer:
                if _OLDER not in line:
                    os.write(2, line)
