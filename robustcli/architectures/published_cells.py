"""Networks of published cells, found by architecture search, and of your own cells."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.cells import CellNetwork, genotype
from robustcli.architectures.layers import Layers
from robustcli.registry.types import Activation, Cells, Count, Counts3, Downsample, Nodes, NormBeside

_FOUND = {
    "AdvRush": genotype(
        normal=("sep3 1 + sep3 0", "sep5 0 + sep3 1", "sep3 1 + sep3 0", "skip 0 + sep3 1"),
        reduce=("sep3 0 + sep3 1", "skip 0 + dil3 2", "skip 0 + avg 1", "skip 0 + skip 2"),
    ),
    "RACL": genotype(
        normal=("sep3 0 + sep3 1", "sep5 0 + skip 1", "sep3 0 + skip 3", "sep3 3 + skip 4"),
        reduce=("sep3 0 + sep5 1", "avg 0 + dil3 1", "sep3 0 + sep5 1", "sep3 2 + dil3 3"),
    ),
    "DARTS-V2": genotype(
        normal=("sep3 0 + sep3 1", "sep3 0 + sep3 1", "sep3 1 + skip 0", "skip 0 + dil3 2"),
        reduce=("max 0 + max 1", "skip 2 + max 1", "max 0 + skip 2", "skip 2 + max 1"),
    ),
    "P-DARTS": genotype(
        normal=("skip 0 + dil3 1", "skip 0 + sep3 1", "sep3 1 + sep3 3", "sep3 0 + dil5 4"),
        reduce=("avg 0 + sep5 1", "sep3 0 + dil5 2", "max 0 + dil3 1", "dil3 1 + dil5 3"),
    ),
}
_ARNAS = genotype(
    normal=("skip 0 + skip 1", "sep5 0 + sep3 1", "sep5 3 + sep3 1", "sep5 4 + skip 0"),
    reduce=("avg 1 + avg 0", "dil5 2 + avg 0", "dil5 3 + dil5 2", "dil5 4 + dil5 3"),
    robust=("dil5 0 + dil5 1", "dil5 1 + dil5 2", "dil3 3 + dil5 2", "dil3 4 + dil3 3"),
)


@ARCHITECTURES.register(
    "advrush",
    added={"activation": "relu", "norm": "batch", "downsample": "strided"},
    fixed={"search": "AdvRush"},
    smoke={"width": 2, "cells": 3},
)
@ARCHITECTURES.register(
    "racl",
    added={"activation": "relu", "norm": "batch", "downsample": "strided"},
    fixed={"search": "RACL"},
    smoke={"width": 2, "cells": 3},
)
@ARCHITECTURES.register(
    "darts_v2",
    added={"activation": "relu", "norm": "batch", "downsample": "strided"},
    fixed={"search": "DARTS-V2"},
    smoke={"width": 2, "cells": 3},
)
@ARCHITECTURES.register("p_darts", fixed={"search": "P-DARTS"}, smoke={"width": 2, "cells": 3})
def cells_of_a_search(
    shape: ImageShape,
    /,
    *,
    search: Literal["AdvRush", "RACL", "DARTS-V2", "P-DARTS"],
    width: Count = 36,
    cells: Cells = 20,
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """{search}: repetitions of two cells found by a published architecture search.

    AdvRush searches on clean images with a penalty on the input curvature of the loss, RACL with a bound on the
    Lipschitz constant that holds with high confidence; DARTS-V2 and P-DARTS search for clean accuracy only, as a
    baseline for robust cells. The auxiliary classifier and path dropping of the authors' training are left out.

    Args:
        search: the search that found the cells; DARTS-V2 is second-order DARTS.
        width: channels of a node in the first third of the cells. For the size of a WideResNet, 96 in AdvRush and 104
            in RACL, both with 23 cells.
        cells: number of cells; those at one third and two thirds halve the resolution.

    Reference: AdvRush: Mok et al., ICCV 2021; RACL: Dong et al., "Adversarially Robust Neural Architectures", arXiv
        2009.00902; Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019; P-DARTS: Chen et
        al., "Progressive Differentiable Architecture Search", ICCV 2019.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample)
    return CellNetwork(shape, [_FOUND[search]] * cells, layers, width=width, factors=(1, 2, 4))


@ARCHITECTURES.register(
    "arnas", added={"activation": "relu", "norm": "batch", "downsample": "strided"}, smoke={"width": 2, "cells": 4}
)
def arnas(
    shape: ImageShape,
    /,
    *,
    width: Count = 64,
    cells: Cells = 20,
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """ARNAS: accurate cells near the input and robust cells near the output, found with two losses.

    The last third keeps the width of the second. The auxiliary classifier of the authors' training is left out.

    Args:
        width: channels of a node in the first third of the cells.
        cells: number of cells; those at one third and two thirds halve the resolution, and the last third is robust.

    Reference: Ou, Feng and Sun, "Towards Accurate and Robust Architectures via Neural Architecture Search",
        CVPR 2024.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample)
    return CellNetwork(shape, [_ARNAS] * cells, layers, width=width, factors=(1, 2, 2))


@ARCHITECTURES.register("cell_network", added={"activation": "relu", "norm": "batch", "downsample": "strided"}, smoke={
    "normal": ("sep3 0 + skip 1", "dil3 1 + avg 2"),
    "reduce": ("max 0 + dil5 1", "skip 0 + sep5 2"),
    "robust": ("dil3 0 + dil3 1", "dil3 1 + skip 2"),
    "width": 4,
    "cells": 4,
})  # fmt: skip
def cell_network(
    shape: ImageShape,
    /,
    *,
    normal: Nodes,
    reduce: Nodes,
    robust: Nodes | None = None,
    width: Count = 36,
    cells: Cells = 20,
    factors: Counts3 = (1, 2, 4),
    affine: bool = True,
    activation: Activation = "relu",
    norm: NormBeside = "batch",
    downsample: Downsample = "strided",
) -> nn.Module:
    """Network of your own cells, such as those of an architecture search.

    A cell is a list of nodes, and a node is a sum of operations on earlier states: "sep3 0 + skip 1". States 0 and 1
    are the outputs of the two previous cells, state 2 is the first node. The output of a cell is all nodes,
    concatenated. Operations: sep3 and sep5 (two separable convolutions), dil3 and dil5 (a dilated convolution), max and
    avg (3x3 pools) and skip (identity; two shifted 1x1 convolutions where the resolution is halved).

    With pooling in `downsample`, a pool precedes every convolution that would be strided, and one 1x1 convolution
    replaces the two shifted ones; the operations max and avg keep their stride. There is no norm conv, because a
    depthwise convolution divided by its spectrum would keep only phases, and there are no channel gates, because cells
    have no residual branches.

    Args:
        normal: nodes of the cells before the second reduction.
        reduce: nodes of the two cells that halve the resolution, at one third and two thirds of the cells.
        robust: nodes of the cells after the second reduction; null: those of normal.
        width: channels of a node in the first third of the cells.
        cells: number of cells.
        factors: factors on the width for each third; 1, 2, 2 in DSARA and ARNAS.
        affine: norms inside cells have a scale and a shift.

    Reference: Liu, Simonyan and Yang, ICLR 2019; three kinds: Ou et al., arXiv 2212.14049.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, affine=affine)
    return CellNetwork(shape, [genotype(normal, reduce, robust)] * cells, layers, width=width, factors=factors)
