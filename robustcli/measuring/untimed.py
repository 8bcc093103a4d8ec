"""What is asked of a step in runs that no clock sees: its passes by kind, and the most memory that it takes."""

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

from robustcli.measuring.passes import Passes, passes_by_kind

# What the allocator says of a block that is older than the profile and freed in it: such ones are not to count.
_OLDER = b"before the profiling started"


@dataclass(frozen=True)
class Untimed:
    """Of one way of making an update.

    Args:
        passes: per image of the batch.
        peak_bytes: the most memory of tensors at once, beyond what was held before.
    """

    passes: Passes
    peak_bytes: int

    @classmethod
    def of(cls, network: nn.Module, step: Callable[[], object], batch_size: int, device: torch.device) -> "Untimed":
        """Run a step thrice.

        Args:
            network: the one that the step makes its passes through, and trains.

        Raises:
            RobustCliError: the network has no convolution to look at.
        """
        with passes_by_kind(network) as counter:
            step()
        return cls(counter.per_image(batch_size), peak_of_update(network, step, device))


def peak_of_update(network: nn.Module, step: Callable[[], object], device: torch.device) -> int:
    """The peak of an update's second run: what it fetches once, such as the optimiser's buffers, is no part of it.

    Args:
        network: that is trained; its gradients of the last update are dropped, and the next ones count.
    """
    step()
    network.zero_grad(set_to_none=True)
    return peak_bytes(step, device)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors take at once while something runs, beyond what they held before.

    On a GPU as torch's allocator counts it. On a CPU from the allocations that torch's profiler writes down, so that
    neither what the process keeps of freed memory nor what else lies in it counts.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - held
    # The profiler says on stderr that it begins and ends, and that there is no GPU.
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
    """Standard error, that of C++ too, comes out at the end, without what the allocator says of older blocks."""
    sys.stderr.flush()
    own = os.dup(2)
    with TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            said.seek(0)
            for line in said:
                if _OLDER not in line:
                    os.write(2, line)
