"""`robust bench architectures`: speed of every architecture and layer relative to its multiply-accumulates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from robustcli.bench.results.architectures import (
    ArchitectureBench,
    ArchitectureRow,
    BothSpeeds,
    BothSpreads,
    architecture_label,
)
from robustcli.bench.variants import SHAPE
from robustcli.errors import RobustCliError, suggest
from robustcli.measuring.machine import circumstances
from robustcli.measuring.network_profile import profile_of
from robustcli.measuring.timing import Sample, Spread, Stopwatch, Timed, measure, speed
from robustcli.models.build import network_for_random_images
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device
from robustcli.specs.check import checked_member
from robustcli.specs.settings import ARCHITECTURE

# Reference of all comparisons.
YARDSTICK = "resnet18"
# A network is slow if its multiply-accumulates per second are less than this share of the reference's.
SLOW = 1 / 3
# Multiply-accumulates per image above which the width of a network is halved until it is below.
_LARGE = 0.6e9


@dataclass(frozen=True)
class _Member:
    """An architecture to measure.

    Args:
        settings: settings that differ from the defaults.
    """

    name: str
    chosen: MemberSpec
    settings: dict[str, Any]
    macs: int
    parameters: int

    @property
    def label(self) -> str:
        """Unique name with settings."""
        return architecture_label(self.name, self.settings)


def bench_architectures(names: tuple[str, ...], batch_size: int, rounds: int, device_name: str) -> ArchitectureBench:
    """Time forward passes and input gradients of architectures with their defaults, in eval mode.

    Args:
        names: names of architectures. Empty: all architectures without required settings, the reference with every
            other layer option, and the reference inside every architecture that contains another network.

    Raises:
        RobustCliError: an architecture is unknown or has required settings.
    """
    device = choose_device(device_name)
    members = list(_members(names))
    keep_freed_memory()
    watch = Stopwatch(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch_size, *SHAPE.size), generator=generator).to(device)
    samples: dict[str, Sample] = {}
    # The most expensive first, because it determines the number of repeats.
    for member in sorted(members, key=lambda member: -member.macs):
        network = network_for_random_images(member.chosen, SHAPE).to(device).eval().requires_grad_(False)
        samples[f"gradient {member.label}"] = Timed(_gradient(network, x), watch)
        samples[f"forward {member.label}"] = Timed(_forward(network, x), watch)
    seconds = measure(samples, rounds)
    timed = [_Timed(each, seconds[f"forward {each.label}"], seconds[f"gradient {each.label}"]) for each in members]
    return ArchitectureBench(
        **vars(circumstances(device)),
        image=[*SHAPE.size],
        batch_size=batch_size,
        clock=watch.name,
        rounds=rounds,
        yardstick=YARDSTICK,
        slow=SLOW,
        rows=[each.row(timed[0], batch_size) for each in timed],
    )


@dataclass(frozen=True)
class _Timed:
    """Seconds of every round for a batch: forward passes, and passes with a gradient to the images."""

    member: _Member
    forward: Sequence[float]
    gradient: Sequence[float]

    def row(self, yardstick: "_Timed", batch_size: int) -> ArchitectureRow:
        """Return the row of the table, compared with the reference."""
        forward, gradient = Spread.of(self.forward), Spread.of(self.gradient)
        macs = self.member.macs
        # Multiply-accumulates per second as a multiple of the reference's, by rounds.
        scale = macs / yardstick.member.macs
        ratio = BothSpreads(
            forward=speed(self.forward, yardstick.forward) * scale,
            gradient=speed(self.gradient, yardstick.gradient) * scale,
        )
        return ArchitectureRow(
            name=self.member.name,
            settings=self.member.settings,
            parameters=self.member.parameters,
            macs=macs,
            seconds_per_image=BothSpreads(forward=forward * (1 / batch_size), gradient=gradient * (1 / batch_size)),
            gmacs_per_second=BothSpeeds(
                forward=batch_size * macs / 1e9 / forward.median, gradient=batch_size * macs / 1e9 / gradient.median
            ),
            ratio=ratio,
            # Slow in every round, so that noise does not make a layer slow.
            is_slow=ratio.forward.high < SLOW or ratio.gradient.high < SLOW,
        )


def _members(names: tuple[str, ...]) -> Iterator[_Member]:
    """Yield the reference, then the others."""
    known = catalog("architectures")
    for name in names:
        if name not in known:
            raise RobustCliError(f"--architecture: there is no '{name}'{suggest(name, known)}")
    able = [name for name, member in known.items() if not member.required]
    for name in names:
        if name not in able:
            raise RobustCliError(f"--architecture: '{name}' has required settings, but only defaults are measured")
    for name in dict.fromkeys((YARDSTICK, *(names or able))):
        yield _sized(name)
    if not names:
        yield from (_member(YARDSTICK, settings) for settings in _other_layers())
        around = {"network": {"name": YARDSTICK}}
        yield from (_member(name, around) for name, member in known.items() if "network" in member.parameters)


def _other_layers() -> Iterator[dict[str, Any]]:
    """Yield settings of the reference that change one layer option each."""
    for key, parameter in catalog("architectures")[YARDSTICK].parameters.items():
        if get_origin(parameter.annotation) is Literal and isinstance(parameter.default, str):
            yield from ({key: name} for name in get_args(parameter.annotation) if name != parameter.default)


def _sized(name: str) -> _Member:
    """Return an architecture with its defaults, or with its widths halved until it is small enough."""
    member = _member(name, {})
    while member.macs > _LARGE:
        widths = {key: _halved(value) for key, value in member.chosen.parameters.items() if key.startswith("wid")}
        if not widths or any(_least(width) < 1 for width in widths.values()):
            break
        member = _member(name, widths)
    return member


def _member(name: str, settings: dict[str, Any]) -> _Member:
    chosen = checked_member(ARCHITECTURE, {"name": name, **settings}, ("architecture",), "robust bench")
    parts = profile_of(chosen, SHAPE)
    return _Member(name, chosen, settings, parts.macs, parts.parameters)


def _halved(width: Any) -> Any:
    return [value // 2 for value in width] if isinstance(width, list | tuple) else width // 2


def _least(width: Any) -> int:
    least: int = min(width) if isinstance(width, list) else width
    return least


def _forward(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            network(x)

    return run


def _gradient(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        images = x.detach().requires_grad_()
        torch.autograd.grad(network(images).sum(), images)

    return run
