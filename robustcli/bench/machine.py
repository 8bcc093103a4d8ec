"""The machine that is measured on, and the head of what is stored."""

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from robustcli.build import describe_device
from robustcli.runs import SCHEMA, provenance


def circumstances(device: torch.device) -> dict[str, Any]:
    """What every stored bench begins with: who measured, where, with which code."""
    return {"schema": SCHEMA, "provenance": provenance(describe_device(device)), "machine": machine()}


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
    return (
        f"{head['provenance']['device']}; {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"load {facts['load']}; torch {facts['torch']}"
    )


def _processor() -> str:
    """The processor in words, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
