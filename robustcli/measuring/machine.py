"""Facts about the machine, and the header of stored measurements."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli.runtime.device import describe_device
from robustcli.store.provenance import provenance, version_of
from robustcli.store.runs import SCHEMA


def circumstances(device: torch.device, peers: Sequence[str] = ()) -> dict[str, Any]:
    """Return the header of stored measurements: code, machine and versions.

    Args:
        peers: other packages that are measured too.
    """
    return {
        "schema": SCHEMA,
        "provenance": provenance(describe_device(device)),
        "machine": machine(),
        "peers": {name: version_of(name) for name in peers},
    }


def machine() -> dict[str, Any]:
    """Return processor, cores, threads, load and version of torch."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def format_machine(head: Mapping[str, Any]) -> str:
    """Return one line about the machine of a measurement, with threads and versions."""
    facts = head["machine"]
    versions = ", ".join([f"torch {facts['torch']}", *format_peers(head)])
    return (
        f"{head['provenance']['device']}; {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"load {facts['load']}; {versions}"
    )


def format_peers(head: Mapping[str, Any]) -> list[str]:
    """Return the other packages of a measurement with their versions; old measurements store none."""
    return [f"{name} {version or 'of unknown version'}" for name, version in head.get("peers", {}).items()]


def _processor() -> str:
    """Return the name of the processor, if the system has one."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
