"""The machine that is measured on, and the head of what is stored."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli.runtime.device import describe_device
from robustcli.store.runs import SCHEMA, provenance, version_of


def circumstances(device: torch.device, peers: Sequence[str] = ()) -> dict[str, Any]:
    """What every stored bench begins with: who measured, where, with which code, beside what.

    Args:
        peers: packages that are measured too.
    """
    return {
        "schema": SCHEMA,
        "provenance": provenance(describe_device(device)),
        "machine": machine(),
        "peers": {name: version_of(name) for name in peers},
    }


def machine() -> dict[str, Any]:
    """Processor, cores, threads, load and torch's version."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def machine_words(head: Mapping[str, Any]) -> str:
    """The machine that was measured on, with threads and versions."""
    facts = head["machine"]
    versions = ", ".join([f"torch {facts['torch']}", *peer_words(head)])
    return (
        f"{head['provenance']['device']}; {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"load {facts['load']}; {versions}"
    )


def peer_words(head: Mapping[str, Any]) -> list[str]:
    """Every package that was measured too, with its version; of what was stored before these were, none."""
    return [f"{name} {version or 'of unknown version'}" for name, version in head.get("peers", {}).items()]


def _processor() -> str:
    """The processor in words, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
