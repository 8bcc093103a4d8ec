"""Published networks at full depth and minimal width train one epoch from YAML."""

import json
import re
from pathlib import Path

import pytest

from robustcli.cli.progress import Screen
from robustcli.registry.catalog import catalog
from robustcli.specs.spec import ExperimentSpec
from robustcli.workflows.train import run_experiment

SPEC = """
name: smoke
data: {name: digits, val_size: 8, train_size: 8}
architecture: ARCHITECTURE
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 1}
train: {epochs: 1, batch_size: 8, lr: 1e-3, grad_clip: 1, check_examples: 8, check_steps: 1, device: cpu}
evaluate: {}
"""
# By published name; widths that are not given are the smallest of the family.
NETWORKS = {
    "ResNet-18": "{name: resnet18, width: 4}",
    "ResNet-34": "{name: resnet34, width: 4}",
    "ResNet-50": "{name: resnet50, width: 4}",
    "ResNet-101": "{name: resnet101, width: 4}",
    "ResNet-152": "{name: resnet152, width: 4}",
    "PreActResNet-18 without a final norm": "{name: preact_resnet18, form: a, width: 4}",
    "PreActResNet-18": "{name: preact_resnet18, width: 4}",
    "PreActResNet-18 of DeepMind": "{name: preact_resnet18, form: dm, activation: silu, width: 4}",
    "WRN-28": "{name: wide_resnet, depth: 28, widen: 1}",
    "WRN-28 of DeepMind": "{name: wide_resnet, form: deepmind, depth: 28, widen: 1, activation: silu}",
    "WRN-34": "{name: wide_resnet, depth: 34, widen: 1}",
    "WRN-70 of DeepMind": "{name: wide_resnet, form: deepmind, depth: 70, widen: 1, activation: silu}",
    "WRN-82 of DeepMind": "{name: wide_resnet, form: deepmind, depth: 82, widen: 1, activation: silu}",
    "WRN-94 of DeepMind": "{name: wide_resnet, form: deepmind, depth: 94, widen: 1, activation: silu}",
    "WRN-106 of DeepMind": "{name: wide_resnet, form: deepmind, depth: 106, widen: 1, activation: silu}",
    "WRN-28-PSSiLU": "{name: wide_resnet, depth: 28, widen: 1, activation: pssilu}",
    "AlexNet 2222": "{name: alexnet, width: 4, upsample: 4}",
    "VGG-16 22222": "{name: vgg16, width: 4, upsample: 4}",
    "ResNet-18 1122": "{name: resnet18, width: 4, strides: [1, 1, 2, 2]}",
    "RobustResNet by its budget": "{name: robust_resnet, budget: 0.03}",
    "RobustResNet-A1": "{name: robust_resnet, widths: [1, 1, 1]}",
    "RobustResNet-A2": "{name: robust_resnet, depths: [17, 17, 8], widths: [1, 1, 1]}",
    "RobustResNet-A3": "{name: robust_resnet, depths: [22, 22, 11], widths: [1, 1, 1]}",
    "RobustResNet-A4": "{name: robust_resnet, depths: [27, 28, 13], widths: [1, 1, 1]}",
    "WRN-A1": "{name: robust_resnet, block: basic, widths: [1, 1, 1]}",
    "WRN-A4": "{name: robust_resnet, block: basic, depths: [27, 28, 13], widths: [1, 1, 1], activation: silu}",
    "WRN-34-R": "{name: robust_wide_resnet, widths: [1, 1, 1]}",
    "RaWRN-70": "{name: robust_arch_wide_resnet, widths: [32, 32, 32], stem: 4}",
    "RaResNet-50": "{name: robust_arch_resnet50, width: 4}",
    "RaResNet-101": "{name: robust_arch_resnet101, width: 4}",
    "RaWRN-101-2": "{name: robust_arch_wide_resnet101_2, width: 4}",
    "XCiT-S12": "{name: xcit, width: 16, heads: 2}",
    "XCiT-M12": "{name: xcit, width: 24, heads: 8}",
    "XCiT-L12": "{name: xcit, width: 32, heads: 16}",
    "XCiT-L24": "{name: xcit, width: 16, heads: 2, depth: 24}",
    "ViT": "{name: vit, width: 16, heads: 2, patch: 4}",
    "CIFS-ResNet-18": "{name: cifs, network: {name: resnet18, width: 4}}",
    "FLC-PreActResNet-18": "{name: preact_resnet18, form: c, downsample: flc, width: 4}",
    "ConvNorm-ResNet-18": "{name: resnet18, norm: conv, width: 4}",
    "RegNetX-200MF": "{name: regnet}",
    "SENet-18": "{name: senet18, width: 16}",
    "SKResNet-18": "{name: sknet, width: 16}",
    "ConvNeXt-T": "{name: convnext, widths: [4, 4, 4, 4]}",
    "AdvRush, 23 cells": "{name: advrush, width: 2, cells: 23}",
    "RobNet-large-v2": "{name: robnet, width: 2, cells: 33}",
    "RobNet-free": "{name: robnet_free, width: 2}",
    "RACL, 23 cells": "{name: racl, width: 2, cells: 23}",
    "ARNAS, 20 cells": "{name: arnas, width: 2, cells: 20}",
}

_MEMBER = re.compile(r"name: (\w+)")


def _kind(text: str) -> str:
    """Return the module of the architecture of an entry; all networks of cells are of one kind."""
    member = catalog("architectures")[_MEMBER.search(text)[1]]  # type: ignore[index]
    return "cells" if "cells" in member.parameters or member.name == "robnet_free" else member.module


# The others differ from the first one only in depth, width, activation or cell graph.
_FIRST = {_kind(text): name for name, text in reversed(NETWORKS.items())}
CASES = [
    pytest.param(text, id=name, marks=pytest.mark.slow if name in _FIRST.values() else pytest.mark.full)
    for name, text in NETWORKS.items()
]


@pytest.mark.parametrize("architecture", CASES)
def test_one_epoch_from_yaml(architecture: str, tmp_path: Path) -> None:
    spec = ExperimentSpec.parse(SPEC.replace("ARCHITECTURE", architecture), "the test")
    run = run_experiment(spec, tmp_path, Screen(is_quiet=True))
    assert run.best.is_file()
    (epoch,) = [json.loads(line) for line in (run.path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    # For the check on eight images.
    assert 0 <= epoch["robust"] <= epoch["clean"] <= 1
    # Near ln 10, the loss of a well-initialized untrained network.
    assert 1 < epoch["loss"] < 6
