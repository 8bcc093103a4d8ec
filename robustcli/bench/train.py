"""The story of `robust bench train`: a defense's step beside its passes alone, and beside torchattacks."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from robustcli.bench.elsewhere import Elsewhere
from robustcli.bench.machine import circumstances
from robustcli.bench.passes import least_passes
from robustcli.bench.peers import find_peer
from robustcli.bench.rounds import Sample, Spread, Stopwatch, Timed, beside, measure
from robustcli.bench.variants import SHAPE, Request, Variants, choose
from robustcli.build import choose_device
from robustcli.memory import keep_freed_memory
from robustcli.registry import Chosen

OURS, AGAIN, ALONE = "ours", "ours again", "its passes alone"
AS_OURS, AS_IT_COMES = "torchattacks, set as ours", "torchattacks, as it comes"


def bench_train(request: Request) -> dict[str, Any]:
    """Measure every defense asked for.

    Raises:
        RobustCliError: something a user can mend; before anything is measured.
    """
    device = choose_device(request.device)
    architecture, defenses = choose(request)
    is_compared = "pgd_at" in defenses and request.weights == "none"
    missing: list[str] = []
    torchattacks = find_peer("torchattacks", missing) if is_compared else None
    keep_freed_memory()  # As training does.
    if request.is_compiled:
        # Torch makes only so many programs of one function, and those of other networks count.
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
    name: str, chosen: Chosen, request: Request, architecture: Chosen, torchattacks: Any | None
) -> dict[str, Any]:
    """Passes and rows of one defense."""
    variants = Variants(request, architecture)
    watch = Stopwatch(variants.device)
    steps = chosen.parameters.get("steps", 0)
    passes, least = variants.passes(chosen), least_passes(name, request.weights)
    samples: dict[str, Sample] = {
        OURS: Timed(variants.ours(chosen), watch),
        AGAIN: Timed(variants.ours(chosen), watch),
        ALONE: Timed(variants.alone(least or passes), watch),
    }
    with ExitStack() as stack:
        if name == "pgd_at" and torchattacks is not None:
            samples[AS_OURS] = Timed(variants.torchattacks(torchattacks, steps), watch)
            samples[AS_IT_COMES] = stack.enter_context(Elsewhere(request, steps))
        seconds = measure(samples, request.rounds)
    return {
        "passes": asdict(passes),
        "least_passes": asdict(least) if least else None,
        "rows": _rows(seconds, request.batch_size),
    }


def _rows(seconds: dict[str, list[float]], batch_size: int) -> list[dict[str, Any]]:
    """One row per variant; its ratio is our speed as a multiple of its."""
    compared = beside(seconds, OURS, AGAIN)
    return [
        {
            "name": name,
            "seconds": asdict(Spread.of(values)),
            "images_per_second": batch_size / Spread.of(values).median,
            **compared[name],
        }
        for name, values in seconds.items()
    ]
