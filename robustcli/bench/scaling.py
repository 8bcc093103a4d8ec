"""`robust bench scaling`: growth of the cost of a step with batch, steps, width and processes."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from scipy.stats import theilslopes

from robustcli.bench.results.scaling import ScalingAxis, ScalingBench, ScalingPoint, ScalingSettings
from robustcli.bench.variants import SHAPE, Request, Variants, choose
from robustcli.bench.worker import Worker, messages
from robustcli.measuring.machine import circumstances
from robustcli.measuring.network_profile import profile_of
from robustcli.measuring.timing import Sample, Spread, Stopwatch, Timed, measure
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device

BATCHES = (1, 4, 16, 32, 64, 128, 256)
STEPS = (1, 2, 5, 10, 20)
WIDTHS = (4, 8, 16, 32, 64)
# A point deviates if its median is this far from the line, as a share, and all rounds are on one side.
_OFF = 0.1
# Values of the axes that are not varied.
_BATCH, _STEPS, _WIDTH = 64, 5, 16
# Updates of each process in one sample.
_UPDATES = 4


def bench_scaling(architecture: str, rounds: int, workers: int, device_name: str) -> ScalingBench:
    """Time updates of PGD adversarial training over batch size, attack steps, width and processes.

    Args:
        architecture: architecture with a width.
        workers: maximum number of processes.

    Raises:
        RobustCliError: the architecture or the device is invalid.
    """
    device = choose_device(device_name)
    keep_freed_memory()
    request = Request(architecture=architecture, width=_WIDTH, batch_size=_BATCH, device=device_name)
    choose(request)
    axes = {
        "batch": _axis({batch: (batch, replace(request, batch_size=batch), _STEPS) for batch in BATCHES}, rounds),
        "steps": _axis({steps: (steps, request, steps) for steps in STEPS}, rounds),
        "width": _axis(
            {width: (_macs(replace(request, width=width)), replace(request, width=width), _STEPS) for width in WIDTHS},
            rounds,
        ),
        "workers": _workers(request, rounds, workers),
    }
    return ScalingBench(
        **vars(circumstances(device)),
        architecture=architecture,
        settings=ScalingSettings(batch=_BATCH, steps=_STEPS, width=_WIDTH),
        clock=Stopwatch(device).name,
        rounds=rounds,
        axes=axes,
    )


def fitted(sizes: Mapping[int, float], seconds: Mapping[int, Sequence[float]]) -> ScalingAxis:
    """Fit a line to the medians, and mark points that deviate.

    Args:
        sizes: expected size of the cost by value on the axis.
        seconds: seconds of every round by value on the axis.

    Reference: Sen, Journal of the American Statistical Association, 1968.
    """
    spreads = {value: Spread.of(found) for value, found in seconds.items()}
    line = theilslopes([spreads[value].median for value in sizes], list(sizes.values()), method="joint")
    slope, start = float(line.slope), float(line.intercept)
    points = []
    for value, size in sizes.items():
        spread, expected = spreads[value], start + slope * size
        apart = spread.median / expected - 1 if expected > 0 else float("inf")
        # The whole spread is on one side of the line, and the median is beyond the tolerance.
        is_off = abs(apart) > _OFF and not spread.low <= expected <= spread.high
        points.append(ScalingPoint(value=value, size=size, seconds=spread, apart=apart, is_off=is_off))
    return ScalingAxis(start=start, slope=slope, points=points)


def _axis(variants: Mapping[int, tuple[float, Request, int]], rounds: int) -> ScalingAxis:
    """Time an update at each value of one axis, in turn in every round."""
    samples: dict[str, Sample] = {}
    # The most expensive first, because it determines the number of repeats.
    for value, (_, request, steps) in reversed(list(variants.items())):
        samples[str(value)] = Timed(_update(request, steps), Stopwatch(choose_device(request.device)))
    found = measure(samples, rounds)
    sizes = {value: size for value, (size, _, _) in variants.items()}
    return fitted(sizes, {value: found[str(value)] for value in variants})


def _update(request: Request, steps: int) -> Callable[[], object]:
    architecture, defenses = choose(request)
    chosen = defenses["pgd_at"]
    return Variants(request, architecture).ours(replace(chosen, parameters={**chosen.parameters, "steps": steps}))


def _macs(request: Request) -> float:
    return profile_of(choose(request)[0], SHAPE).macs / 1e6


def _workers(request: Request, rounds: int, most: int) -> ScalingAxis:
    """Time updates in several processes at once, by the wall clock; constant if they do not slow each other."""
    found = {}
    workers: list[Worker[bool]] = []
    with ExitStack() as stack:
        for count in range(1, most + 1):
            device = _device_of(count - 1, choose_device(request.device))
            workers.append(stack.enter_context(Worker(_serve, replace(request, device=device))))
            _at_once(workers)
            found[count] = [_at_once(workers) for _ in range(rounds)]
    points = []
    alone = Spread.of(found[1])
    for count, values in found.items():
        spread = Spread.of(values)
        apart = spread.median / alone.median - 1
        is_off = abs(apart) > _OFF and not spread.low <= alone.high
        points.append(ScalingPoint(value=count, size=1.0, seconds=spread, apart=apart, is_off=is_off))
    return ScalingAxis(start=alone.median, slope=0.0, points=points)


def _device_of(number: int, device: torch.device) -> str:
    """Return the device of a process; processes are distributed over the GPUs."""
    return f"cuda:{number % torch.cuda.device_count()}" if device.type == "cuda" else "cpu"


def _at_once(workers: Sequence[Worker[bool]]) -> float:
    """Return the seconds per update until the last process is done."""
    start = time.perf_counter()
    for worker in workers:
        worker.send(_UPDATES)
    for worker in workers:
        worker.receive()
    return (time.perf_counter() - start) / _UPDATES


def _serve(pipe: Connection, request: Request) -> None:
    """Run the number of updates of each message, on one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    update = _update(request, _STEPS)
    device = torch.device(request.device)
    for count in messages(pipe):
        for _ in range(count):
            update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        pipe.send(True)
