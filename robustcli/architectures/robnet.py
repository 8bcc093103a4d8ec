"""RobNet: cells in which every state is connected to every later one; a code of two bits describes an edge."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.cells import CellNetwork, Genotype, genotype
from robustcli.architectures.layers import Layers
from robustcli.registry.types import Activation, Cells, Count, Downsample, NormBeside

# Operations on an edge: none, a separable convolution, the identity, or the sum of both.
_BY_DIGIT = {"0": (), "1": ("sep3",), "2": ("skip",), "3": ("sep3", "skip")}

# One group of digits for each node, one digit for each earlier state.
_LARGE = "33 333 1312 31113"
_FREE = (
    "32 332 3112 33031",
    "30 121 0220 13230",
    "33 311 3102 02203",
    "23 211 2212 30012",
    "33 102 2212 10213",
    "32 333 1230 21313",
    "33 322 1321 22212",
    "13 331 3331 31320",
    "33 333 1132 10213",
    "23 103 3231 33330",
    "32 300 0301 20123",
    "13 133 2232 31320",
    "33 221 0233 12201",
    "13 331 1311 33122",
    "13 333 1012 23223",
    "33 033 1012 03133",
    "33 133 2322 22233",
    "23 133 1303 30201",
    "32 333 3323 03133",
    "33 113 3100 20113",
)


def _cell(digits: str) -> Genotype:
    nodes = tuple(
        " + ".join(f"{name} {source}" for source, digit in enumerate(group) for name in _BY_DIGIT[digit])
        for group in digits.split()
    )
    return genotype(normal=nodes, reduce=nodes)


@ARCHITECTURES.register(
    "robnet", added={"activation": "relu", "norm": "batch", "downsample": "strided"}, smoke={"width": 2, "cells": 3}
)
def robnet(
    shape: ImageShape,
    /,
    *,
    width: Count = 36,
    cells: Cells = 20,
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """RobNet-large: repetitions of one densely connected cell of separable convolutions and identities.

    The defaults give RobNet-large-v1. The norms inside cells have no scale and no shift.

    Args:
        width: channels of a node in the first third of the cells; 64 in RobNet-large-v2.
        cells: number of cells, 33 in RobNet-large-v2; those at one third and two thirds halve the resolution.

    Reference: Guo et al., "When NAS Meets Robustness: In Search of Robust Architectures against Adversarial
        Attacks", CVPR 2020.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, affine=False)
    return CellNetwork(shape, [_cell(_LARGE)] * cells, layers, width=width, factors=(1, 2, 4))


@ARCHITECTURES.register("robnet_free", smoke={"width": 2})
def robnet_free(
    shape: ImageShape,
    /,
    *,
    width: Count = 36,
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """RobNet-free: twenty different cells, each found by the search.

    The norms inside cells have no scale and no shift. The cells at one third and two thirds halve the resolution.

    Args:
        width: channels of a node in the first third of the cells.

    Reference: Guo et al., "When NAS Meets Robustness: In Search of Robust Architectures against Adversarial
        Attacks", CVPR 2020; the cells: the authors' repository.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, affine=False)
    return CellNetwork(shape, [_cell(digits) for digits in _FREE], layers, width=width, factors=(1, 2, 4))
