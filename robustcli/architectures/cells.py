"""Networks of cells: small graphs of operations, found by architecture search and repeated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.operations import OPERATIONS, projected
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.types import Counts3, Nodes

Kind = Literal["normal", "reduce", "robust"]
# (name of an operation, channels, stride) -> the layer of an edge.
NewOperation = Callable[[str, int, int], nn.Module]


@dataclass(frozen=True)
class Edge:
    """An operation on an earlier state: 0 and 1 are the outputs of the two previous cells, 2 is the first node, ..."""

    operation: str
    source: int


# A node is the sum of its edges.
Node = tuple[Edge, ...]


@dataclass(frozen=True)
class Genotype:
    """The three kinds of cells of a network, as lists of nodes.

    Args:
        normal: cells before the second reduction, which keep the resolution.
        reduce: the two cells that halve the resolution.
        robust: cells after the second reduction.
    """

    normal: tuple[Node, ...]
    reduce: tuple[Node, ...]
    robust: tuple[Node, ...]


def genotype(normal: Nodes, reduce: Nodes, robust: Nodes | None = None) -> Genotype:
    """Parse the cells of a spec: one string such as "sep3 0 + skip 1" for each node.

    Args:
        robust: nodes of the last third; None: those of `normal`.

    Raises:
        RobustCliError: an operation is unknown, or an edge reads a state that does not exist yet.
    """
    late = ("normal", normal) if robust is None else ("robust", robust)
    return Genotype(_nodes("normal", normal), _nodes("reduce", reduce), _nodes(*late))


def _nodes(kind: str, texts: Nodes) -> tuple[Node, ...]:
    if not texts:
        raise RobustCliError(
            f"architecture.{kind}: the cell has no nodes; write a list of strings such as 'sep3 0 + skip 1'"
        )
    return tuple(_node(f"architecture.{kind}.{number}", text, 2 + number) for number, text in enumerate(texts))


def _node(where: str, text: str, states: int) -> Node:
    edges = []
    for part in text.split("+"):
        operation, _, source = part.strip().partition(" ")
        if operation not in OPERATIONS:
            raise RobustCliError(f"{where}: unknown operation '{operation}'{suggest(operation, OPERATIONS)}")
        if not source.strip().isdecimal() or int(source) >= states:
            raise RobustCliError(
                f"{where}: '{part.strip()}' reads from '{source.strip()}'; write '{operation} I' with I from 0 to "
                f"{states - 1}: 0 and 1 are the outputs of the two previous cells, 2 is the first node of this one"
            )
        edges.append(Edge(operation, int(source)))
    return tuple(edges)


def text_of(node: Node) -> str:
    """Return a node as a spec writes it."""
    return " + ".join(f"{edge.operation} {edge.source}" for edge in node)


class Cell(nn.Module):
    """One cell: outputs of the two previous cells -> all nodes, concatenated; a node sums operations on earlier states.

    Args:
        kind: kind of the cell; "reduce" halves the resolution on every edge from the two inputs.
        inputs: channels of the two inputs; the first has twice the resolution if `after_reduction`.
        channels: channels of every node.
        new: makes the layer of an edge.
        layers: layers of the projections before the nodes.
    """

    def __init__(
        self,
        kind: Kind,
        inputs: tuple[int, int],
        channels: int,
        nodes: Sequence[Node],
        new: NewOperation,
        layers: Layers,
        *,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.first = projected(inputs[0], channels, layers, 2 if after_reduction else 1)
        self.second = projected(inputs[1], channels, layers)
        self.sources = [[edge.source for edge in node] for node in nodes]
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                new(edge.operation, channels, 2 if kind == "reduce" and edge.source < 2 else 1) for edge in node
            )
            for node in nodes
        )

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        states: list[Tensor] = [self.first(before), self.second(last)]
        for node, sources in zip(self.nodes, self.sources, strict=True):
            assert isinstance(node, nn.ModuleList)
            first, *others = (edge(states[source]) for edge, source in zip(node, sources, strict=True))
            states.append(sum(others, first))
        return torch.cat(states[2:], 1)


def kind_of(number: int, cells: int) -> Kind:
    """Return the kind of a cell, given its number and the number of all cells."""
    first, second = cells // 3, 2 * cells // 3
    if number in (first, second):
        return "reduce"
    return "normal" if number < second else "robust"


class CellNetwork(nn.Module):
    """A 3x3 convolution, cells, global average, classifier; the cells after one and two thirds halve the resolution.

    Args:
        genotypes: one for each cell.
        layers: layers of the cells; the first convolution has the same, with scale and shift in its norm.
        width: channels of a node in the first third; the first convolution has three times as many.
        factors: factors on the width for each third; a reducing cell belongs to the third that it starts.
        new: makes the layer of an edge; None: the operation that the genotype names.
    """

    def __init__(
        self,
        shape: ImageShape,
        genotypes: Sequence[Genotype],
        layers: Layers,
        *,
        width: int,
        factors: Counts3,
        new: NewOperation | None = None,
    ) -> None:
        super().__init__()
        new = new or (lambda name, channels, stride: OPERATIONS[name](channels, stride, layers))
        before = last = 3 * width
        stem_norm = replace(layers, affine=True).normalization(last)
        self.stem = nn.Sequential(layers.convolution(shape.channels, last), stem_norm)
        built: list[Cell] = []
        cells = len(genotypes)
        for number, found in enumerate(genotypes):
            kind = kind_of(number, cells)
            channels = width * factors[(number >= cells // 3) + (number >= 2 * cells // 3)]
            nodes: tuple[Node, ...] = getattr(found, kind)
            after_reduction = number > 0 and kind_of(number - 1, cells) == "reduce"
            built.append(Cell(kind, (before, last), channels, nodes, new, layers, after_reduction=after_reduction))
            before, last = last, len(nodes) * channels
        self.cells = nn.ModuleList(built)
        self.fc = nn.Linear(last, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last)
        logits: Tensor = self.fc(last.mean((2, 3)))
        return logits
