"""`robust bench train`: speed of training steps, compared with their passes and with torchattacks."""

from contextlib import ExitStack
from typing import Any

import torch

from robustcli.bench.baselines import find_package
from robustcli.bench.results.training import TrainingBench, TrainingDefense, TrainingRow, TrainingSettings
from robustcli.bench.subprocess_peer import SubprocessPeer
from robustcli.bench.variants import SHAPE, Request, Variants, choose
from robustcli.measuring.counters import Counters, peak_of_update
from robustcli.measuring.machine import circumstances
from robustcli.measuring.passes import least_passes
from robustcli.measuring.timing import AGAIN, ALONE, OURS, Sample, Stopwatch, Timed, Timings, measure
from robustcli.registry.registry import MemberSpec
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device

AS_OURS, AS_IT_COMES = "torchattacks, set as ours", "torchattacks, as it comes"
# Default settings, but in this process, which keeps freed memory.
PLAIN = "torchattacks, fp32 in the plain format"

Measured = dict[str, tuple[Sample, Counters]]
"""What is timed, with its passes and its memory, by name."""


def bench_train(request: Request) -> TrainingBench:
    """Measure defenses.

    Raises:
        RobustCliError: an option is invalid; raised before anything is measured.
    """
    device = choose_device(request.device)
    architecture, defenses = choose(request)
    is_compared = "pgd_at" in defenses and request.weights == "none"
    missing: list[str] = []
    torchattacks = find_package("torchattacks", missing) if is_compared else None
    keep_freed_memory()  # as training does
    if request.is_compiled:
        # Torch limits the number of programs of a function, including those of other networks.
        torch.compiler.reset()
    results = {name: _bench(name, chosen, request, architecture, torchattacks) for name, chosen in defenses.items()}
    return TrainingBench(
        **vars(circumstances(device, ["torchattacks"] if torchattacks else [])),
        settings=TrainingSettings(
            architecture=architecture.parameters | {"name": architecture.name},
            weights=request.weights,
            batch_size=request.batch_size,
            image=[*SHAPE.size],
            precision=request.precision,
            channels_last=Variants(request, architecture).is_last,
            compile=request.is_compiled,
            rounds=request.rounds,
            clock=Stopwatch(device).name,
        ),
        notes=missing,
        defenses=results,
    )


def _bench(
    name: str, chosen: MemberSpec, request: Request, architecture: MemberSpec, torchattacks: Any | None
) -> TrainingDefense:
    """Return the passes and rows of one defense."""
    variants = Variants(request, architecture)
    device, watch = variants.device, Stopwatch(variants.device)
    passes, least = variants.passes(chosen), least_passes(name, request.weights)
    (trained, ours), alone = variants.step(chosen), variants.alone(least or passes)
    of_ours = Counters(passes, peak_of_update(trained, ours, device))
    of_limit = Counters(least or passes, peak_of_update(alone.trained, alone, device))
    measured: Measured = {
        OURS: (Timed(ours, watch), of_ours),
        AGAIN: (Timed(variants.ours(chosen), watch), of_ours),
        ALONE: (Timed(alone, watch), of_limit),
    }
    with ExitStack() as stack:
        if name == "pgd_at" and torchattacks is not None:
            measured |= _peers(torchattacks, variants, architecture, chosen.parameters["steps"], stack)
        samples = {key: sample for key, (sample, _) in measured.items()}
        timings = Timings(measure(samples, request.rounds))
    rows = [_row(key, timings, counters, request.batch_size) for key, (_, counters) in measured.items()]
    return TrainingDefense(passes=passes, least_passes=least, rows=rows)


def _peers(torchattacks: Any, variants: Variants, architecture: MemberSpec, steps: int, stack: ExitStack) -> Measured:
    """Return loops with torchattacks: with our settings and, if they differ, with its own, here and elsewhere."""
    request, watch = variants.request, Stopwatch(variants.device)
    here = {AS_OURS: variants}
    if variants.is_last or request.precision != "fp32":
        here[PLAIN] = Variants(request.plain(), architecture)
    measured: Measured = {}
    for key, settings in here.items():
        network, step = settings.torchattacks(torchattacks, steps)
        counters = Counters.of(network, step, request.batch_size, variants.device)
        measured[key] = (Timed(step, watch), counters)
    peer = stack.enter_context(SubprocessPeer(request, steps))
    measured[AS_IT_COMES] = (peer, peer.counters())
    return measured


def _row(name: str, timings: Timings, counters: Counters, batch_size: int) -> TrainingRow:
    seconds = timings.spread(name)
    return TrainingRow(
        name=name,
        seconds=seconds,
        images_per_second=batch_size / seconds.median,
        ratio=timings.ratio(name),
        verdict=timings.verdict(name),
        over_limit=timings.over(ALONE, name),
        beside_torchattacks=timings.beside(AS_IT_COMES, name),
        passes=counters.passes,
        peak_bytes=counters.peak_bytes,
    )
