"""Networks of cells against published counts and a second implementation; valid genotypes."""

import zlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import (
    CIFAR,
    State,
    build,
    build_small,
    build_weightless,
    classify,
    convolve,
    count_macs,
    count_parameters,
    images,
    norm,
)
from torch import Tensor, nn

from robustcli.architectures import published_cells, robnet
from robustcli.architectures.cells import Cell, CellNetwork, genotype, text_of
from robustcli.architectures.layers import Layers
from robustcli.architectures.operations import Halved
from robustcli.errors import RobustCliError


@pytest.mark.parametrize(
    ("name", "settings", "expected", "gigamacs"),
    [
        ("robnet", {}, 6_842_710, 1.0303),
        ("robnet", {"width": 64, "cells": 33}, 33_326_666, 5.0946),
        ("robnet_free", {}, 5_439_790, 0.7802),
        ("advrush", {}, 4_158_046, 0.6453),
        ("advrush", {"width": 64}, 12_712_522, 1.9492),
        ("advrush", {"width": 96, "cells": 23}, 32_575_018, 4.9485),
        ("racl", {}, 3_571_174, 0.5500),
        ("racl", {"width": 104, "cells": 23}, 32_509_682, 4.9108),
        ("darts_v2", {}, 3_349_342, 0.5284),
        ("p_darts", {}, 3_433_798, 0.5322),
        ("arnas", {"width": 36}, 1_533_718, 0.4238),
        ("arnas", {}, 4_520_394, 1.2402),
    ],
)
@pytest.mark.slow
def test_size_is_the_published_one(name: str, settings: dict[str, Any], expected: int, gigamacs: float) -> None:
    network = build_weightless(name, **settings)
    assert count_parameters(network) == expected
    assert round(count_macs(network, CIFAR) / 1e9, 4) == gigamacs


def operate(state: State, name: str, operation: str, x: Tensor, stride: int) -> Tensor:
    """An operation from its equation; `name` is the prefix of its weights."""
    if operation == "max":
        return F.max_pool2d(x, 3, stride, 1)
    if operation == "avg":
        ones = torch.ones(1, 1, *x.shape[2:])
        # Sums over nine places, divided by how many of them lie inside.
        return F.avg_pool2d(x, 3, stride, 1, divisor_override=1) / F.avg_pool2d(ones, 3, stride, 1, divisor_override=1)
    if operation == "skip":
        return x if stride == 1 else halve(state, name, x)
    kernel, dilation = int(operation[3]), 2 if operation[:3] == "dil" else 1
    for first in (0, 4) if operation[:3] == "sep" else (0,):
        depthwise = state[f"{name}.{first + 1}.weight"]
        assert depthwise.shape[1:] == (1, kernel, kernel)
        x = F.conv2d(
            x.relu(), depthwise, None, stride if first == 0 else 1, dilation * (kernel // 2), dilation, len(x[0])
        )
        x = norm(state, f"{name}.{first + 3}", convolve(state, f"{name}.{first + 2}", x))
    return x


def halve(state: State, name: str, x: Tensor) -> Tensor:
    x = x.relu()
    kernels = [state[f"{name}.{part}.weight"][:, :, 0, 0] for part in ("here", "beside")]
    parts = [torch.einsum("oc,nchw->nohw", kernel, x[:, :, at::2, at::2]) for at, kernel in enumerate(kernels)]
    return norm(state, f"{name}.norm", torch.cat(parts, 1))


def reference(state: State, x: Tensor, genes: dict[str, tuple[str, ...]], kinds: list[str]) -> Tensor:
    before = last = norm(state, "stem.1", convolve(state, "stem.0", x, padding=1))
    for number, kind in enumerate(kinds):
        name = f"cells.{number}"
        if number and kinds[number - 1] == "reduce":
            first = halve(state, f"{name}.first", before)
        else:
            first = norm(state, f"{name}.first.2", convolve(state, f"{name}.first.1", before.relu()))
        states = [first, norm(state, f"{name}.second.2", convolve(state, f"{name}.second.1", last.relu()))]
        for i, text in enumerate(genes[kind]):
            node = torch.zeros(())
            for j, edge in enumerate(text.split(" + ")):
                operation, source = edge.split()
                stride = 2 if kind == "reduce" and int(source) < 2 else 1
                node = node + operate(state, f"{name}.nodes.{i}.{j}", operation, states[int(source)], stride)
            states.append(node)
        before, last = last, torch.cat(states[2:], 1)
    return classify(state, "fc", last)


def checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def test_published_cells_are_those_of_the_authors() -> None:
    """Compared with their repositories once; sizes do not tell which states an edge reads."""
    kinds = {
        name: [text_of(node) for nodes in (found.normal, found.reduce, found.robust) for node in nodes]
        for name, found in {**published_cells._FOUND, "ARNAS": published_cells._ARNAS}.items()
    }
    assert {name: checksum("; ".join(texts)) for name, texts in kinds.items()} == {
        "AdvRush": "1da796a5",
        "RACL": "7554dd5f",
        "DARTS-V2": "a1981ac6",
        "P-DARTS": "b1979e2e",
        "ARNAS": "e17dbdb0",
    }
    assert checksum(" ".join((robnet._LARGE, *robnet._FREE))) == "31c77388"


GENES = {
    "normal": ("sep3 0 + skip 1", "dil5 1 + avg 2"),
    "reduce": ("max 0 + dil3 1", "skip 0 + sep5 2 + avg 1"),
    "robust": ("sep5 0 + dil3 1", "max 1 + skip 2", "skip 3"),
}


def test_cells_are_their_equations() -> None:
    network = build_small("cell_network", width=4, cells=6, factors=(1, 2, 3), **GENES)
    kinds = ["normal", "normal", "reduce", "normal", "reduce", "robust"]
    x = images(CIFAR)
    expected = reference(dict(network.state_dict()), x, GENES, kinds)
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
    assert network.get_submodule("fc").weight.shape == (10, 3 * 3 * 4)


def test_without_robust_cells_the_last_third_has_normal_ones() -> None:
    genes = {**GENES, "robust": None}
    network = build_small("cell_network", width=4, cells=4, **genes)
    x = images(CIFAR)
    expected = reference(dict(network.state_dict()), x, GENES, ["normal", "reduce", "reduce", "normal"])
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("cells", "reducing"), [(3, (1, 2)), (4, (1, 2)), (8, (2, 5)), (20, (6, 13)), (23, (7, 15)), (33, (11, 22))]
)
def test_cells_at_one_and_at_two_thirds_reduce(cells: int, reducing: tuple[int, int]) -> None:
    network = build_weightless("arnas", width=2, cells=cells)
    kinds = [cell.kind for cell in network.modules() if isinstance(cell, Cell)]
    assert tuple(number for number, kind in enumerate(kinds) if kind == "reduce") == reducing
    assert kinds[: reducing[0]] == ["normal"] * reducing[0]
    assert kinds[reducing[1] + 1 :] == ["robust"] * (cells - reducing[1] - 1)


def test_robnet_sums_both_operations_where_the_code_has_both() -> None:
    network = build_weightless("robnet", cells=3)
    cell = next(cell for cell in network.modules() if isinstance(cell, Cell) and cell.kind == "normal")
    kinds = [["skip" if isinstance(edge, nn.Identity) else "sep" for edge in node] for node in cell.nodes]
    assert kinds == [
        ["sep", "skip"] * 2,
        ["sep", "skip"] * 3,
        ["sep", "sep", "skip", "sep", "skip"],
        ["sep", "skip", "sep", "sep", "sep", "sep", "skip"],
    ]
    norms = [module for module in cell.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(module.affine for module in norms)


def test_every_cell_of_robnet_free_is_its_own() -> None:
    network = build_weightless("robnet_free")
    assert isinstance(network, CellNetwork)
    edges = [tuple(map(tuple, cell.sources)) for cell in network.cells if isinstance(cell, Cell)]
    assert len(edges) == len(set(edges)) == 20
    # The second node of the eleventh cell: of three states it reads from the first alone, by both operations.
    assert edges[10][1] == (0, 0)


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_halving_reads_every_other_pixel_of_both_kinds(side: int) -> None:
    """Sides are rounded up; beyond an odd side the second half reads zeros."""
    torch.manual_seed(0)
    halved = Halved(3, 5, Layers(affine=False)).eval()
    x = 1 + torch.rand(2, 3, side, side)
    out = halved(x) * (1 + halved.norm.eps) ** 0.5
    half = -(-side // 2)
    assert out.shape == (2, 5, half, half)
    padded = F.pad(x, (0, 1, 0, 1))
    for i in range(half):
        for j in range(half):
            for part, at, rows in ((halved.here, 0, slice(0, 2)), (halved.beside, 1, slice(2, 5))):
                pixel = padded[:, :, 2 * i + at, 2 * j + at]
                torch.testing.assert_close(out[:, rows, i, j], pixel @ part.weight[:, :, 0, 0].T)


@pytest.mark.parametrize(
    ("normal", "text"),
    [
        (("sep4 0",), r"architecture.normal.0: unknown operation 'sep4'; did you mean 'sep"),
        (("sep3 0 + skip 1", "skip 0 skip 1"), r"architecture.normal.1: 'skip 0 skip 1' reads from '0 skip 1'"),
        (("skip 2",), "normal.0: 'skip 2' reads from '2'; write 'skip I' with I from 0 to 1"),
        (("skip 0", "skip"), "normal.1: 'skip' reads from ''; write 'skip I' with I from 0 to 2"),
        (("skip -1",), "reads from '-1'"),
        (("skip 0 +",), "unknown operation ''"),
        ((), "architecture.normal: the cell has no nodes"),
    ],
)
def test_a_wrong_genotype_is_named(normal: tuple[str, ...], text: str) -> None:
    with pytest.raises(RobustCliError, match=text):
        genotype(normal, ("skip 0",))


def test_errors_name_the_kind_that_was_written() -> None:
    for kind in ("reduce", "robust"):
        with pytest.raises(RobustCliError, match=f"architecture.{kind}.0: unknown operation 'no'"):
            build("cell_network", **{**GENES, kind: ("no 0",)})


def test_the_smallest_network_has_one_cell_of_each_third() -> None:
    network = build_weightless("advrush", cells=3)
    assert isinstance(network, CellNetwork)
    assert len(network.cells) == 3
