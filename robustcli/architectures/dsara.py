"""Search space of DSARA: a supernet of accurate, reducing and robust cells."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.supernet import Supernet
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Count, Downsample, NormBeside


@ARCHITECTURES.register(
    "dsara",
    searches=True,
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
    """Supernet for the defense of the same name: every edge is a mixture of all operations with learned weights.

    Cells before the second reduction are accurate (`normal`), those after it robust; cells of one kind share their
    mixture weights. Operations: max and average pools, skip, sep3, sep5, dil3 and dil5; "none" is not among them. The
    result of a search is a cell_network whose nodes keep the two strongest edges; the run writes a spec for it. Other
    defenses train the mixture weights like all other weights.

    Args:
        width: channels of a node in the first third of the cells, doubled after it; train the network that the search
            finds with more.
        cells: number of cells, at least 4, so that there is one of each kind.
        nodes: nodes of a cell; 4 as published.
        norm: batch or group, without scale and shift; the network that the search finds has both.

    Reference: Ou et al., "Differentiable Search of Accurate and Robust Architectures", arXiv 2212.14049; cells:
        Liu, Simonyan and Yang, ICLR 2019.
    """
    if cells < 4:
        raise RobustCliError(
            f"architecture.cells: {cells}; a supernet needs at least 4 cells: one accurate, two reducing, one robust"
        )
    layers = Layers(activation=activation, norm=norm, downsample=downsample, affine=False)
    return Supernet(shape, layers, width=width, cells=cells, nodes=nodes)
