"""The story of `robust bench train`: a defense's step beside its passes alone, and beside torchattacks."""

import os
import platform
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD

from robustcli.architectures import ImageShape
from robustcli.bench.passes import Passes, PassesAlone, least_passes, passes_by_kind
from robustcli.bench.peers import MISSING, find_torchattacks, torchattacks_step
from robustcli.bench.rounds import Spread, Stopwatch, measure, speed, verdict
from robustcli.build import build_network, choose_device, describe_device
from robustcli.catalog import catalog
from robustcli.check import Checker
from robustcli.clock import Clock
from robustcli.defenses import Defense
from robustcli.errors import SpecError
from robustcli.fields import Family
from robustcli.noise import StreamNoise
from robustcli.registry import Chosen, instantiate
from robustcli.runs import SCHEMA, provenance
from robustcli.settings import ArchitectureOptions, TrainSettings
from robustcli.threat import ThreatModel
from robustcli.training_model import TrainingModel

# The shape of CIFAR-10. What the images show does not matter: every pass costs the same.
SHAPE = ImageShape(3, 32, 32, 10)
THREAT = ThreatModel("linf", Fraction(8, 255))
WIDTH = 16
# Small, because one batch is seen again and again.
_LR = 1e-3

OURS, AGAIN, ALONE = "ours", "ours again", "its passes alone"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `robust bench train` was asked for.

    Args:
        defenses: registered names.
        weights: the weight perturbation of each of them.
        architecture: registered name.
        width: of the architecture; None is 16 where it has one.
        batch_size: images per update.
        rounds: in each of which everything is measured once.
        precision, channels_last: of the network's passes, as in a spec.
        device: auto, cpu, cuda or cuda:i.
    """

    defenses: tuple[str, ...] = ("pgd_at",)
    weights: str = "none"
    architecture: str = "preact_resnet18"
    width: int | None = None
    batch_size: int = 128
    rounds: int = 7
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    device: str = "auto"

    @property
    def is_plain(self) -> bool:
        """Whether it runs as a network runs when nothing is said."""
        return self.precision == "fp32" and not self.channels_last


def bench_train(request: Request) -> dict[str, Any]:
    """Measure every defense asked for.

    Raises:
        RobustCliError: something a user can mend; before anything is measured.
    """
    device = choose_device(request.device)
    watch = Stopwatch(device)
    architecture, defenses = _chosen(request)
    torchattacks = find_torchattacks() if "pgd_at" in defenses else None
    notes = [MISSING] if "pgd_at" in defenses and torchattacks is None else []
    results = {}
    for name, chosen in defenses.items():
        bench = _Bench(request, architecture, device)
        passes = bench.passes(chosen)
        steps = chosen.parameters.get("steps", 0)
        least = least_passes(name, steps, request.weights)
        variants = {OURS: bench.ours(chosen), AGAIN: bench.ours(chosen), ALONE: bench.alone(least or passes)}
        if name == "pgd_at" and torchattacks is not None:
            variants |= bench.torchattacks(torchattacks, steps)
        for step in variants.values():
            step()
        seconds = measure(variants, request.rounds, watch)
        results[name] = {
            "passes": asdict(passes),
            "least_passes": asdict(least) if least else None,
            "rows": _rows(seconds, request.batch_size),
        }
    return {
        "schema": SCHEMA,
        "provenance": provenance(describe_device(device)),
        "machine": _machine(),
        "settings": {
            "architecture": architecture.parameters | {"name": architecture.name},
            "weights": request.weights,
            "batch_size": request.batch_size,
            "image": [SHAPE.channels, SHAPE.height, SHAPE.width],
            "precision": request.precision,
            "channels_last": request.channels_last,
            "rounds": request.rounds,
            "clock": watch.name,
        },
        "notes": notes,
        "defenses": results,
    }


def _rows(seconds: dict[str, list[float]], batch_size: int) -> list[dict[str, Any]]:
    """One row per variant; its ratio is our speed as a multiple of its."""
    again = speed(seconds[OURS], seconds[AGAIN])
    rows = []
    for name, values in seconds.items():
        ratio = speed(seconds[OURS], values)
        rows.append(
            {
                "name": name,
                "seconds": asdict(Spread.of(values)),
                "images_per_second": batch_size / Spread.of(values).median,
                "ratio": None if name == OURS else asdict(ratio),
                "verdict": None if name in (OURS, AGAIN) else verdict(ratio, again),
            }
        )
    return rows


def _chosen(request: Request) -> tuple[Chosen, dict[str, Chosen]]:
    """The architecture and the defenses by name, checked as those of a spec."""
    checker = Checker()
    architecture: dict[str, Any] = {"name": request.architecture}
    known = catalog("architectures").get(request.architecture)
    if request.width is not None or (known and "width" in known.parameters):
        architecture["width"] = WIDTH if request.width is None else request.width
    weights = {} if request.weights == "none" else {"weights": {"name": request.weights}}
    chosen = checker.chosen(Family("architectures", ArchitectureOptions), architecture, ("architecture",))
    defenses = {
        name: checker.chosen(Family("defenses"), {"name": name, **weights}, ("defense",)) for name in request.defenses
    }
    if checker.problems:
        raise SpecError("robust bench", [f"{'.'.join(map(str, where))}: {text}" for where, text in checker.problems])
    return chosen, defenses


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor in words, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


class _Bench:
    """One batch and one network, of which every variant gets a copy of its own."""

    def __init__(self, request: Request, architecture: Chosen, device: torch.device) -> None:
        self.request = request
        self.device = device
        self.settings = TrainSettings(epochs=1, precision=request.precision, channels_last=request.channels_last)
        generator = torch.Generator().manual_seed(0)
        shape = (request.batch_size, SHAPE.channels, SHAPE.height, SHAPE.width)
        self.x = torch.rand(shape, generator=generator).to(device)
        self.y = torch.randint(SHAPE.classes, (request.batch_size,), generator=generator).to(device)
        self.network = build_network(architecture, SHAPE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(device).train()

    def passes(self, chosen: Chosen) -> Passes:
        """What one of our steps makes."""
        network, step = self._step(chosen)
        with passes_by_kind(network) as counter:
            step()
        return counter.per_image(self.request.batch_size)

    def ours(self, chosen: Chosen) -> Callable[[], object]:
        """The step that `robust train` makes."""
        return self._step(chosen)[1]

    def alone(self, passes: Passes) -> Callable[[], object]:
        model = TrainingModel(self._copy(), self.settings, self.device)
        return PassesAlone(model, passes, self._formatted(self.x), self.y, _LR)

    def torchattacks(self, torchattacks: Any, steps: int) -> dict[str, Callable[[], object]]:
        """In the precision and memory format of ours and, if those are not plain, plain as well."""

        def step(network: nn.Module, x: Tensor, is_bf16: bool) -> Callable[[], None]:
            return torchattacks_step(
                torchattacks, network, x, self.y, eps=THREAT.radius, steps=steps, is_bf16=is_bf16, lr=_LR
            )

        same = step(self._copy(), self._formatted(self.x), self.request.precision == "bf16")
        if self.request.is_plain:
            return {"torchattacks": same}
        return {
            "torchattacks, same precision and format": same,
            "torchattacks, plain fp32": step(deepcopy(self.network), self.x, False),
        }

    def _step(self, chosen: Chosen) -> tuple[nn.Module, Callable[[], object]]:
        network = self._copy()
        model = TrainingModel(network, self.settings, self.device)
        optimizer = SGD(network.parameters(), lr=_LR, momentum=0.9, weight_decay=5e-4)
        defense: Defense = instantiate(chosen)
        noise = StreamNoise.on(self.device)
        step = defense.start(model, optimizer, noise)
        clock = Clock(step=0, steps_per_epoch=1, epochs=1)

        def run() -> object:
            noise.reseed(0, "attack")
            return step(self.x, self.y, THREAT, clock)

        return network, run

    def _copy(self) -> nn.Module:
        network = deepcopy(self.network)
        return network.to(memory_format=torch.channels_last) if self.request.channels_last else network

    def _formatted(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.request.channels_last else x
