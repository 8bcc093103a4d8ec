"""Stored result of `robust bench architectures`."""

from collections.abc import Mapping
from typing import Any, Literal

from robustcli.bench.results.bases import TimedBench
from robustcli.measuring.timing import Spread
from robustcli.store.models import Stored


class BothSpreads(Stored):
    """Numbers for forward passes, and for passes with a gradient to the images."""

    forward: Spread
    gradient: Spread


class BothSpeeds(Stored):
    """Multiply-accumulates per second, in 10^9."""

    forward: float
    gradient: float


class ArchitectureRow(Stored):
    """One network; ratios are multiply-accumulates per second as multiples of the reference's.

    Args:
        settings: settings that differ from the defaults.
    """

    name: str
    settings: dict[str, Any]
    parameters: int
    macs: int
    seconds_per_image: BothSpreads
    gmacs_per_second: BothSpeeds
    ratio: BothSpreads
    is_slow: bool

    @property
    def label(self) -> str:
        """Name with the settings that differ from the defaults."""
        return architecture_label(self.name, self.settings)


class ArchitectureBench(TimedBench):
    """Result of `robust bench architectures`; rows are slow below the share `slow` of the reference's speed."""

    block = "architecture speed"

    bench: Literal["architectures"] = "architectures"
    image: list[int]
    batch_size: int
    yardstick: str
    slow: float
    rows: list[ArchitectureRow]


def architecture_label(name: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a network with the settings that differ from its defaults."""
    named = (
        f"{key} {value['name'] if isinstance(value, Mapping) else value}" for key, value in sorted(settings.items())
    )
    return f"{name} ({', '.join(named)})" if settings else name
