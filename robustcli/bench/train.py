"""`robust bench train`: speed of training steps, compared with their passes and with torchattacks."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from robustcli.bench.baselines import find_package
from robustcli.bench.subprocess_peer import SubprocessPeer
from robustcli.bench.variants import SHAPE, Request, Variants, choose
from robustcli.measuring.counters import Counters, peak_of_update
from robustcli.measuring.machine import circumstances
from robustcli.measuring.passes import least_passes
from robustcli.measuring.timing import AGAIN, ALONE, OURS, Sample, Spread, Stopwatch, Timed, compare, measure, to_others
from robustcli.registry.registry import MemberSpec
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device

AS_OURS, AS_IT_COMES = "torchattacks, set as ours", "torchattacks, as it comes"
# Default settings, but in this process, which keeps freed memory.
PLAIN = "torchattacks, fp32 in the plain format"


def bench_train(request: Request) -> dict[str, Any]:
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
    return {
        **circumstances(device, ["torchattacks"] if torchattacks else []),
        "settings": {
            "architecture": architecture.parameters | {"name": architecture.name},
            "weights": request.weights,
            "batch_size": request.batch_size,
            "image": [SHAPE.channels, SHAPE.height, SHAPE.width],
            "precision": request.precision,
            "channels_last": Variants(request, architecture).is_last,
            "compile": request.is_compiled,
            "rounds": request.rounds,
            "clock": Stopwatch(device).name,
        },
        "notes": missing,
        "defenses": results,
    }


def _bench(
    name: str, chosen: MemberSpec, request: Request, architecture: MemberSpec, torchattacks: Any | None
) -> dict[str, Any]:
    """Return the passes and rows of one defense."""
    variants = Variants(request, architecture)
    device, watch = variants.device, Stopwatch(variants.device)
    steps = chosen.parameters.get("steps", 0)
    passes, least = variants.passes(chosen), least_passes(name, request.weights)
    (trained, ours), alone = variants.step(chosen), variants.alone(least or passes)
    samples: dict[str, Sample] = {
        OURS: Timed(ours, watch),
        AGAIN: Timed(variants.ours(chosen), watch),
        ALONE: Timed(alone, watch),
    }
    of_ours = Counters(passes, peak_of_update(trained, ours, device))
    of_limit = Counters(least or passes, peak_of_update(alone.trained, alone, device))
    counters = {OURS: of_ours, AGAIN: of_ours, ALONE: of_limit}
    with ExitStack() as stack:
        if name == "pgd_at" and torchattacks is not None:
            theirs = {AS_OURS: variants}
            if variants.is_last or request.precision != "fp32":
                theirs[PLAIN] = Variants(request.plain(), architecture)
            for key, settings in theirs.items():
                network, step = settings.torchattacks(torchattacks, steps)
                counters[key] = Counters.of(network, step, request.batch_size, device)
                samples[key] = Timed(step, watch)
            peer = stack.enter_context(SubprocessPeer(request, steps))
            counters[AS_IT_COMES] = peer.counters()
            samples[AS_IT_COMES] = peer
        seconds = measure(samples, request.rounds)
    return {
        "passes": asdict(passes),
        "least_passes": asdict(least) if least else None,
        "rows": _rows(seconds, counters, request.batch_size),
    }


def _rows(seconds: dict[str, list[float]], counters: dict[str, Counters], batch_size: int) -> list[dict[str, Any]]:
    """Return one row per variant; the ratio is our speed as a multiple of its speed."""
    compared = compare(seconds, OURS, AGAIN)
    others = to_others(seconds, ALONE, AS_IT_COMES)
    return [
        {
            "name": name,
            "seconds": asdict(Spread.of(values)),
            "images_per_second": batch_size / Spread.of(values).median,
            **asdict(counters[name]),
            **compared[name],
            **others[name],
        }
        for name, values in seconds.items()
    ]
