"""MultiBN: a network with one set of batch norms for each kind of perturbation."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, Body, ImageShape
from robustcli.architectures.branches import Branched
from robustcli.architectures.convolutions import conv3x3
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Size


def kind_gate(shape: ImageShape, kinds: int, width: int) -> nn.Module:
    """Return the gate: a small network, images -> logits (n, kinds); no batch norms, which would mix the kinds."""
    return nn.Sequential(
        conv3x3(shape.channels, width, 2),
        nn.ReLU(),
        conv3x3(width, 2 * width, 2),
        nn.ReLU(),
        conv3x3(2 * width, 4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, kinds),
    )


@ARCHITECTURES.register(
    "multibn", branches="branches", smoke={"network": {"name": "resnet18", "width": 4}, "branches": 3, "gate_width": 4}
)
def multibn(
    shape: ImageShape,
    /,
    *,
    network: Body,
    branches: Count = 2,
    branch: Size | None = None,
    gate_width: Count = 16,
    shares_shortcuts: bool = True,
) -> nn.Module:
    """Another network with one set of batch norms for clean images and one for each kind of perturbation.

    All other weights are shared. A gate predicts the kind of an image, and every batch norm returns the mean of its
    branches weighted by the softmax of the gate, so attacks see how the choice depends on the image. The published gate
    is a network for videos; here it has three convolutions. With `branch` there is no gate and only that branch is
    evaluated; such an accuracy does not cover attackers who choose another branch. The defense of the same name trains
    each kind through its own branch; other defenses train the gated network, whose branches then see all kinds.

    Args:
        network: architecture with batch norms.
        branches: number of sets of batch norms: the first for clean images, then one for each threat, starting with
            that of the spec.
        branch: branch of all images, counted from 0 (0 as in AdvProp, 1 to evaluate robustness); null: the gate
            decides.
        gate_width: channels of the gate's first convolution; the later ones have two and four times as many.
        shares_shortcuts: norms on shortcuts have no branches, as published.

    Reference: Lo and Patel, "Defending Against Multiple and Unforeseen Adversarial Videos", IEEE TIP 2022; two
        branches: Xie and Yuille, ICLR 2020, and Xie et al. (AdvProp), CVPR 2020.
    """
    if branch is not None and branch >= branches:
        raise RobustCliError(f"architecture.branch: {branch}; the branches have the numbers 0 to {branches - 1}")
    assert isinstance(network, nn.Module)
    gate = kind_gate(shape, branches, gate_width) if branch is None else None
    return Branched(gate, network, branches, branch, shares_shortcuts)
