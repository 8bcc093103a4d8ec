"""Batch norms with a branch for each kind of input, and the gate that chooses the branch of an image."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.errors import RobustCliError
from robustcli.runtime.precision import scaled_like_logits

# Names of the shortcuts of residual networks; the last one is that of RegNets.
_SHORTCUT = re.compile(r"shortcut|downsample|block[\d-]+\.proj\.")


class BranchedNorm(nn.Module):
    """Several batch norms instead of one; `route` selects the one that normalizes the batch, or mixes them.

    Args:
        norm: the first branch; the others start as copies of it.
    """

    def __init__(self, norm: _BatchNorm, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([norm, *(deepcopy(norm) for _ in range(branches - 1))])
        self.route: int | Tensor = 0

    def forward(self, h: Tensor) -> Tensor:
        if isinstance(self.route, int):
            out: Tensor = self.branches[self.route](h)
            return out
        shares = self.route.to(h.dtype).unbind(1)
        parts = [
            share.view(-1, *[1] * (h.dim() - 1)) * branch(h)
            for share, branch in zip(shares, self.branches, strict=True)
        ]
        return torch.stack(parts).sum(0)


class Branched(nn.Module):
    """A network whose batch norms have branches. An image takes one branch, or a weighted mean of all.

    Args:
        gate: network that predicts the kind of each image: images -> logits (n, branches). Their softmax are the
            weights of the branches. None: all images take `branch`.
        branch: branch of all images if there is no gate.
        shares_shortcuts: norms on shortcuts have no branches.
    """

    def __init__(
        self, gate: nn.Module | None, network: nn.Module, branches: int, branch: int | None, shares_shortcuts: bool
    ) -> None:
        super().__init__()
        self.gate = gate
        self.network = network
        self.count = branches
        self.branch = branch
        self.forced: int | None = None
        norms = _branch_out(network, branches, shares_shortcuts)
        if not norms:
            raise RobustCliError(
                "architecture.network: this network has no batch norms, so there is nothing to branch; resnet18, "
                "preact_resnet18 and wide_resnet have batch norms"
            )

    def forward(self, x: Tensor) -> Tensor:
        norms = [module for module in self.network.modules() if isinstance(module, BranchedNorm)]
        route = self._route(x)
        for norm in norms:
            norm.route = route
        try:
            logits: Tensor = self.network(x)
        finally:
            # A remaining tensor would keep the graph alive and prevent copies of the network.
            for norm in norms:
                norm.route = 0
        return logits

    def _route(self, x: Tensor) -> int | Tensor:
        if self.forced is not None:
            return self.forced
        if self.gate is not None:
            shares: Tensor = self.gate(x).softmax(1)
            return shares
        assert self.branch is not None
        return self.branch


def _branch_out(network: nn.Module, branches: int, shares_shortcuts: bool) -> list[BranchedNorm]:
    """Replace every batch norm by a BranchedNorm, and return the new norms."""
    found = []
    for path, module in list(network.named_modules()):
        for name, child in list(module.named_children()):
            is_shared = shares_shortcuts and _SHORTCUT.search(f"{path}.{name}") is not None
            if isinstance(child, _BatchNorm) and not is_shared:
                found.append(BranchedNorm(child, branches))
                setattr(module, name, found[-1])
    return found


def branched_of(model: nn.Module, branches: int) -> Branched:
    """Return the part of a model that has branches.

    Raises:
        RobustCliError: no part has branches, or their number differs from `branches`.
    """
    parts = [module for module in model.modules() if isinstance(module, Branched)]
    if not parts:
        raise RobustCliError("this network has no branches of batch norms; write architecture: {name: multibn, ...}")
    if parts[0].count != branches:
        raise RobustCliError(
            f"this network has {parts[0].count} branches; the defense needs {branches}, one per kind of image"
        )
    return parts[0]


@contextmanager
def through_branch(part: Branched, branch: int) -> Iterator[None]:
    """Send all images through one branch inside the context, without asking the gate."""
    before = part.forced
    part.forced = branch
    try:
        yield
    finally:
        part.forced = before


def with_kinds(model: nn.Module, part: Branched, x: Tensor, branch: int) -> tuple[Tensor, Tensor | None]:
    """Return the logits of a forward pass through one branch, and the logits of the gate (None without a gate)."""
    seen: list[Tensor] = []

    def ask(_network: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert part.gate is not None
        seen.append(scaled_like_logits(part.gate(inputs[0])))

    hook = part.network.register_forward_pre_hook(ask) if part.gate is not None else None
    try:
        with through_branch(part, branch):
            logits = model(x)
    finally:
        if hook is not None:
            hook.remove()
    return logits, seen[0] if seen else None
