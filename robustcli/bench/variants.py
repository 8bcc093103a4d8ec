"""Variants of a training step on one batch, for `robust bench train`."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD

from robustcli.architectures import ImageShape
from robustcli.bench.baselines import torchattacks_step
from robustcli.data.targets import Labels
from robustcli.defenses import Defense
from robustcli.errors import RobustCliError
from robustcli.measuring.passes import PassesAlone, passes_by_kind
from robustcli.models.build import network_for_random_images
from robustcli.optimization.progress import Progress
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.registry.types import Family
from robustcli.runtime.device import choose_device
from robustcli.runtime.memory_format import to_channels_last
from robustcli.specs.check import Checker, checked
from robustcli.specs.settings import ARCHITECTURE, TrainSettings
from robustcli.store.passes import Passes
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.model import TrainingModel, is_channels_last

# Shape of CIFAR-10. The images are random, because the cost of a pass does not depend on them.
SHAPE = ImageShape(3, 32, 32, 10)
THREAT = ThreatModel("linf", Fraction(8, 255))
WIDTH = 16
# Small, because the same batch is used repeatedly.
_LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of `robust bench train`.

    Args:
        defenses: registered names of defenses.
        weights: registered name of the weight perturbation of all defenses, or "none".
        architecture: registered name of the architecture.
        width: width of the architecture; None: 16 if it has a width.
        batch_size: images per update.
        rounds: number of rounds; everything is measured once per round.
        precision, channels_last, is_compiled: settings of passes through the network, as in a spec.
        device: auto, cpu, cuda or cuda:i.
    """

    defenses: tuple[str, ...] = ("pgd_at",)
    weights: str = "none"
    architecture: str = "preact_resnet18"
    width: int | None = None
    batch_size: int = 128
    rounds: int = 7
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool | Literal["auto"] = "auto"
    is_compiled: bool = False
    device: str = "auto"

    def plain(self) -> "Request":
        """Return the same options with the defaults of torch: uncompiled, fp32, default memory format."""
        return replace(self, precision="fp32", channels_last=False, is_compiled=False)


def choose(request: Request) -> tuple[MemberSpec, dict[str, MemberSpec]]:
    """Return the architecture, and the defenses by name, checked like those of a spec."""
    architecture: dict[str, Any] = {"name": request.architecture}
    known = catalog("architectures").get(request.architecture)
    if request.width is not None or (known and "width" in known.parameters):
        architecture["width"] = WIDTH if request.width is None else request.width
    weights = {} if request.weights == "none" else {"weights": {"name": request.weights}}

    def parts(checker: Checker) -> tuple[MemberSpec, dict[str, MemberSpec]]:
        family = Family("defenses")
        chosen = checker.chosen(ARCHITECTURE, architecture, ("architecture",))
        defenses = {name: checker.chosen(family, {"name": name, **weights}, ("defense",)) for name in request.defenses}
        return chosen, defenses

    found: tuple[MemberSpec, dict[str, MemberSpec]] = checked(parts, "robust bench")
    return found


def trainable_defenses() -> list[str]:
    """Return the names of the defenses that train any architecture with their defaults."""
    return [name for name, member in catalog("defenses").items() if not member.trains and not member.required]


class Variants:
    """Steps on one batch; each trains a copy of one network.

    Args:
        request: options of the benchmark.
        architecture: architecture of the network.
    """

    def __init__(self, request: Request, architecture: MemberSpec) -> None:
        self.request = request
        self.device = choose_device(request.device)
        self.settings = TrainSettings(
            epochs=1,
            batch_size=request.batch_size,
            precision=request.precision,
            channels_last=request.channels_last,
            compile=request.is_compiled,
        )
        generator = torch.Generator().manual_seed(0)
        shape = (request.batch_size, *SHAPE.size)
        self.x = torch.rand(shape, generator=generator).to(self.device)
        self.y = torch.randint(SHAPE.classes, (request.batch_size,), generator=generator).to(self.device)
        self.network = network_for_random_images(architecture, SHAPE).to(self.device).train()
        self.is_last = is_channels_last(self.network, self.settings, self.device)

    def passes(self, chosen: MemberSpec) -> Passes:
        """Return the passes of one of our steps; compilation does not change them."""
        network, step = self._step(chosen, replace(self.settings, compile=False))
        with passes_by_kind(network) as counter:
            step()
        return counter.per_image(self.request.batch_size)

    def ours(self, chosen: MemberSpec) -> Callable[[], object]:
        """Return the step of `robust train`."""
        return self.step(chosen)[1]

    def step(self, chosen: MemberSpec) -> tuple[nn.Module, Callable[[], object]]:
        """Return the network and the step of `robust train`."""
        return self._step(chosen, self.settings)

    def alone(self, passes: Passes) -> PassesAlone:
        model = TrainingModel(self._copy(), self.settings, self.device, _refuse)
        return PassesAlone(model, passes, self._formatted(self.x), self.y, _LR)

    def torchattacks(self, torchattacks: Any, steps: int) -> tuple[nn.Module, Callable[[], object]]:
        """Return network and step of a loop with torchattacks' PGD, with our precision and memory format."""
        network = self._copy()
        return network, torchattacks_step(
            torchattacks,
            network,
            self._formatted(self.x),
            self.y,
            eps=THREAT.radius,
            steps=steps,
            is_bf16=self.request.precision == "bf16",
            lr=_LR,
        )

    def _step(self, chosen: MemberSpec, settings: TrainSettings) -> tuple[nn.Module, Callable[[], object]]:
        network = self._copy()
        model = TrainingModel(network, settings, self.device, _refuse)
        optimizer = SGD(network.parameters(), lr=_LR, momentum=0.9, weight_decay=5e-4)
        defense: Defense = instantiate(chosen)
        noise = StreamNoise.on(self.device)
        step = defense.start(model, optimizer, noise)
        progress = Progress(step=0, steps_per_epoch=1, epochs=1)

        def run() -> object:
            noise.reseed(0, "attack")
            return step(self.x, Labels.of(self.y), THREAT, progress)

        return network, run

    def _copy(self) -> nn.Module:
        network = deepcopy(self.network)
        return to_channels_last(network) if self.is_last else network

    def _formatted(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.is_last else x


def _refuse(text: str) -> None:
    """Raise an error, because the measurement would be mislabeled."""
    raise RobustCliError(f"--compile: {text}")
