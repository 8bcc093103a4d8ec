"""Supernet of a search space: every edge is a mixture of all operations with learned weights."""

from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.cells import Cell, CellNetwork, Edge, Genotype, Kind, Node, text_of
from robustcli.architectures.layers import Layers
from robustcli.architectures.operations import OPERATIONS, POOLS

KINDS: tuple[Kind, ...] = ("normal", "reduce", "robust")
# Factors on the width for each third; the last keeps the width of the second.
_FACTORS = (1, 2, 2)


class Mixture(nn.Module):
    """Weighted sum of all operations on one edge.

    Pools get a norm too, so that no operation is preferred for its scale.
    """

    def __init__(self, channels: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.choices = nn.ModuleDict()
        for name, new in OPERATIONS.items():
            layer = new(channels, stride, layers)
            if name in POOLS:
                layer = nn.Sequential(layer, layers.normalization(channels))
            self.choices[name] = layer
        self.shares: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.shares is not None
        parts: list[Tensor] = [
            share * choice(x) for share, choice in zip(self.shares, self.choices.values(), strict=True)
        ]
        return sum(parts[1:], parts[0])


class Supernet(nn.Module):
    """Network of cells in which every node reads all earlier states through mixtures.

    Args:
        width: channels of a node in the first third of the cells.
        cells: number of cells.
        nodes: nodes of a cell.
    """

    def __init__(self, shape: ImageShape, layers: Layers, *, width: int, cells: int, nodes: int) -> None:
        super().__init__()
        self.layers, self.width, self.count = layers, width, cells
        every: tuple[Node, ...] = tuple(
            tuple(Edge("mixture", source) for source in range(2 + number)) for number in range(nodes)
        )
        self.network = CellNetwork(
            shape,
            [Genotype(every, every, every)] * cells,
            layers,
            width=width,
            factors=_FACTORS,
            new=lambda _name, channels, stride: Mixture(channels, stride, layers),
        )
        edges = sum(len(node) for node in every)
        # (edges, operations) for each kind of cell; their softmax over operations are the shares.
        self.alphas = nn.ParameterDict({kind: 1e-3 * torch.randn(edges, len(OPERATIONS)) for kind in KINDS})

    def shares(self) -> dict[str, Tensor]:
        """Return the shares (edges, operations) of the operations by kind of cell; rows sum to 1."""
        return {kind: alpha.softmax(1) for kind, alpha in self.alphas.items()}

    def forward(self, x: Tensor) -> Tensor:
        shares = self.shares()
        for cell in self.network.cells:
            assert isinstance(cell, Cell)
            for mixture, row in zip(_mixtures(cell), shares[cell.kind], strict=True):
                mixture.shares = row
        try:
            logits: Tensor = self.network(x)
        finally:
            # A remaining tensor would keep the graph alive and prevent copies of the network.
            for mixture in _mixtures(self):
                mixture.shares = None
        return logits

    def derived(self) -> dict[str, Any]:
        """Return the currently preferred network as a part of a spec."""
        cells = {kind: [text_of(node) for node in strongest(share.detach())] for kind, share in self.shares().items()}
        layers = {name: getattr(self.layers, name) for name in ("activation", "norm", "downsample")}
        size = {"width": self.width, "cells": self.count, "factors": list(_FACTORS)}
        return {"name": "cell_network", **cells, **layers, **size}


def _mixtures(part: nn.Module) -> list[Mixture]:
    """Return the mixtures in the order of nodes and of the states that they read."""
    return [module for module in part.modules() if isinstance(module, Mixture)]


def strongest(shares: Tensor) -> tuple[Node, ...]:
    """Return, for every node, the two edges whose strongest operation has the largest share, with that operation.

    Args:
        shares: (edges, operations) of a cell; its first node has two edges, the second three, and so on.
    """
    best, choice = shares.max(1)
    names = list(OPERATIONS)
    found: list[Node] = []
    begin, sources = 0, 2
    while begin < len(shares):
        kept = sorted(best[begin : begin + sources].topk(2).indices.tolist())
        found.append(tuple(Edge(names[int(choice[begin + source])], source) for source in kept))
        begin, sources = begin + sources, sources + 1
    return tuple(found)
