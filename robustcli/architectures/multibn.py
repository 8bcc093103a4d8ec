"""MultiBN: any network with batch norms, with one set of them for each kind of perturbation."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, Body, ImageShape
from robustcli.architectures.branches import Branched
from robustcli.architectures.convolutions import conv3x3
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Size


def kind_gate(shape: ImageShape, kinds: int, width: int) -> nn.Module:
    """A small network without batch norms, whose statistics would mix the kinds: images -> logits (n, kinds)."""
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
    """Another network, with a set of batch norms for clean images and one for each kind of perturbation.

    Everything else is shared. A gate looks at the image and says of which kind it is; every batch norm then puts
    out the mean of its branches, weighted by the softmax of what the gate says, so attacks see how the choice
    depends on the image. The published gate is a network of its own kind for videos; here it has three
    convolutions. With `branch` there is no gate, and what is evaluated is that branch: an attacker who may
    choose another one is not part of such a number. Trained by the defense of the same name, which sends each
    kind through its own branch; any other method trains the gated network, whose branches then see all kinds.

    Args:
        network: any architecture with batch norms.
        branches: sets of batch norms: the first for clean images, then one for each threat, the spec's first.
        branch: null: the gate decides; a number: always this branch, counted from 0 (0 as AdvProp is used, 1 to
            evaluate robustness).
        gate_width: channels of the gate's first convolution; the later ones have two and four times as many.
        shares_shortcuts: whether the norms on shortcuts stay single, as published.

    Reference: Lo and Patel, "Defending Against Multiple and Unforeseen Adversarial Videos", IEEE TIP 2022; two
        branches: Xie and Yuille, ICLR 2020, and Xie et al. (AdvProp), CVPR 2020.
    """
    if branch is not None and branch >= branches:
        raise RobustCliError(f"architecture.branch: {branch}; the {branches} branches are counted from 0")
    assert isinstance(network, nn.Module)
    gate = kind_gate(shape, branches, gate_width) if branch is None else None
    return Branched(gate, network, branches, branch, shares_shortcuts)
