"""`robust doctor`: facts about the installation and this machine, and a short self-test."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from robustcli import __version__
from robustcli.attacks.pgd import Pgd
from robustcli.measuring.machine import machine
from robustcli.measuring.memory import free_bytes
from robustcli.registry.types import Precision
from robustcli.runtime.device import choose_device, describe_device
from robustcli.runtime.precision import is_native
from robustcli.store.provenance import version_of
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyautoattack")
_OPTIONAL = ("timm", "matplotlib", "torchattacks", "foolbox")
_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16")
_GIB = 2**30
_CLOSE = 1e-5


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        subject: subject of the check.
        text: result.
        is_ok: whether `robust` works with it.
    """

    subject: str
    text: str
    is_ok: bool = True


def examine(device_name: str, folder: Path) -> list[Finding]:
    """Return facts about versions, device, memory and disk, and the result of the self-test.

    Args:
        device_name: auto, cpu, cuda or cuda:i.
        folder: folder for runs; its disk is examined.

    Raises:
        RobustCliError: the device does not exist.
    """
    device = choose_device(device_name)
    facts = machine()
    missing = [name for name in _PACKAGES if version_of(name) is None]
    optional = [name for name in _OPTIONAL if version_of(name) is None]
    native = [precision for precision in _PRECISIONS if is_native(precision, device)]
    free = free_bytes(device)
    return [
        Finding("robust", f"{__version__}, Python {platform.python_version()} at {sys.prefix}"),
        Finding(
            "packages", ", ".join(f"{name} {version_of(name) or 'missing'}" for name in _PACKAGES), is_ok=not missing
        ),
        Finding("not installed (optional)", ", ".join(optional) or "-"),
        Finding("device", describe_device(device)),
        Finding("processor", f"{facts.processor}, {facts.cores} cores, load {facts.load}"),
        Finding("16-bit instructions", ", ".join(native) or "none; use precision fp32 on this device"),
        Finding("free memory", "unknown" if free is None else f"{free / _GIB:.1f} GiB"),
        _disk(folder),
        _self_test(device),
    ]


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / _GIB
    is_writable = os.access(existing, os.W_OK)
    text = f"{free:.1f} GiB free at {existing}{'' if is_writable else ', which is not writable'}"
    return Finding("disk", text, is_ok=is_writable)


def _self_test(device: torch.device) -> Finding:
    """Attack a linear model, whose worst perturbation is known: eps times the sign of the weights' difference."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 27, generator=generator).to(device)
    layer = nn.Linear(27, 2, bias=False).to(device)
    layer.weight.data.copy_(weight)
    model = nn.Sequential(nn.Flatten(), layer)
    x = torch.full((4, 3, 3, 3), 0.5, device=device)
    y = torch.tensor([0, 1, 0, 1], device=device)
    away = (weight[1 - y] - weight[y]).sign().view_as(x)
    noise = StreamNoise.on(device).reseed(0, "doctor")
    x_adv = Pgd()(model, x, y, ThreatModel("linf", Fraction(1, 10)), noise)
    error = float((x_adv - (x + 0.1 * away)).abs().max())
    return Finding(
        "self-test", f"PGD on a linear model is within {error:.0e} of the exact answer", is_ok=error < _CLOSE
    )
