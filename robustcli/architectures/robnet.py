"""RobNet: cells in which every state is joined to every later one, each edge by a code of two bits."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.cells import CellNetwork, Genotype, genotype
from robustcli.architectures.layers import Layers
from robustcli.registry.types import Activation, Cells, Count, Downsample, NormBeside

# What joins two states: nothing, a separable convolution, the state itself, or the sum of both.
_BY_DIGIT = {"0": (), "1": ("sep3",), "2": ("skip",), "3": ("sep3", "skip")}

# A group for each node, a digit for each state that it may read from.
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
    """RobNet-large: one densely connected cell of separable convolutions and the states themselves, everywhere.

    The defaults are RobNet-large-v1. The norms inside cells have neither scale nor shift.

    Args:
        width: channels of a node in the first third of the cells; 64 in RobNet-large-v2.
        cells: of the network, 33 in RobNet-large-v2; those at one and at two thirds reduce.
        activation: the nonlinearity, everywhere.
        norm: batch or group.
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.

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
    """RobNet-free: twenty cells, each of them found by itself.

    The norms inside cells have neither scale nor shift; the cells at one and at two thirds reduce.

    Args:
        width: channels of a node in the first third of the cells.
        activation: the nonlinearity, everywhere.
        norm: batch or group.
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.

    Reference: Guo et al., "When NAS Meets Robustness: In Search of Robust Architectures against Adversarial
        Attacks", CVPR 2020; the cells: the authors' repository.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, affine=False)
    return CellNetwork(shape, [_cell(digits) for digits in _FREE], layers, width=width, factors=(1, 2, 4))
