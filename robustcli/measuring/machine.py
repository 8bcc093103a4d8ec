"""Facts about the machine, and the header of stored measurements."""

import os
import platform
from collections.abc import Sequence

import torch
from pydantic import Field

from robustcli.runtime.device import describe_device
from robustcli.store.models import Stored
from robustcli.store.provenance import Session, this_session, version_of
from robustcli.store.runs import SCHEMA


class Machine(Stored):
    """Processor, cores, threads of torch, load, and version of torch."""

    processor: str
    cores: int | None
    threads: int
    load: float
    torch: str


class Circumstances(Stored):
    """Header of stored measurements: code, machine and versions.

    Args:
        peers: versions of other packages that were measured too; old measurements store none.
    """

    schema_version: int = Field(default=SCHEMA, validation_alias="schema", serialization_alias="schema")
    provenance: Session
    machine: Machine
    peers: dict[str, str | None] = Field(default_factory=dict)

    def describe_machine(self, load: str | None = None) -> str:
        """One line about the machine, with threads and the version of torch; `load` replaces the measured one."""
        facts = self.machine
        cores, threads = (
            f"{count} {name}{'s' * (count != 1)}" for count, name in ((facts.cores, "core"), (facts.threads, "thread"))
        )
        return (
            f"{self.provenance.device}; {facts.processor}, {cores}, {threads}, "
            f"load {facts.load if load is None else load}; torch {facts.torch}"
        )

    def describe_peers(self) -> list[str]:
        """The other packages with their versions."""
        return [f"{name} {version or 'of unknown version'}" for name, version in self.peers.items()]

    def describe(self) -> str:
        """One line about the machine and all versions."""
        return ", ".join([self.describe_machine(), *self.describe_peers()])


def circumstances(device: torch.device, peers: Sequence[str] = ()) -> Circumstances:
    """Return the header of measurements of this process.

    Args:
        peers: other packages that are measured too.
    """
    return Circumstances(
        provenance=this_session(describe_device(device)),
        machine=machine(),
        peers={name: version_of(name) for name in peers},
    )


def machine() -> Machine:
    """Return the facts about this machine and process."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        torch=str(torch.__version__),
    )


def _processor() -> str:
    """Return the name of the processor, if the system has one."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
