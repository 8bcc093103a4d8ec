"""DSARA's search space: a supernet of accurate, reducing and robust cells."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.supernet import Supernet
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Count, Downsample, NormBeside


@ARCHITECTURES.register(
    "dsara",
    added={"activation": "relu", "norm": "batch", "downsample": "strided"},
    smoke={"width": 2, "cells": 4, "nodes": 1},
)
def dsara(
    shape: ImageShape,
    /,
    *,
    width: Count = 24,
    cells: Count = 8,
    nodes: Count = 4,
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """The supernet that the defense of the same name searches: every edge mixes all operations in learned shares.

    Cells before the second reduction are accurate ones (`normal`), those after it robust ones; cells of one kind
    have the same shares. Operations: max and average pools, skip, sep3, sep5, dil3 and dil5; there is no "none".
    What a search prefers is an architecture cell_network, whose nodes keep the two strongest edges; a run ends
    with a spec that names it. Any other defense trains the shares as it trains the weights.

    Args:
        width: channels of a node in the first third of the cells, doubled after it; those that train the network
            found are more.
        cells: of the supernet, at least 4, so that there is one of each kind.
        nodes: of a cell; 4 as published.
        activation: the nonlinearity, everywhere.
        norm: batch or group, without scale and shift; the network that is found has them.
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.

    Reference: Ou et al., "Differentiable Search of Accurate and Robust Architectures", arXiv 2212.14049; cells:
        Liu, Simonyan and Yang, ICLR 2019.
    """
    if cells < 4:
        raise RobustCliError(
            f"architecture.cells: {cells}; a supernet has at least 4, one accurate, two that reduce and one robust"
        )
    layers = Layers(activation=activation, norm=norm, downsample=downsample, affine=False)
    return Supernet(shape, layers, width=width, cells=cells, nodes=nodes)
