"""CIFS: a network of stages with gates that weight the channels of its last stage."""

from typing import Any, Literal

from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, Body, ImageShape
from robustcli.architectures.channel_gates import ChannelGate, gates_of
from robustcli.architectures.features import show_black_image
from robustcli.errors import RobustCliError
from robustcli.registry.types import Size


@ARCHITECTURES.register("cifs", smoke={"network": {"name": "resnet18", "width": 4}, "hidden": 8})
def cifs(
    shape: ImageShape,
    /,
    *,
    network: Body,
    hidden: Size = 128,
    mask: Literal["softmax", "scaled", "sigmoid", "tanh"] = "softmax",
    detaches: bool = True,
) -> nn.Module:
    """Another network with a channel gate after every block of its last stage.

    Each gate has a probe that predicts the class. Channels are weighted by the gradient of the probe's logits of two
    classes: in evaluation the two most likely ones, in training (with the defense of the same name) the label and the
    second most likely one. The probe of the last block is linear, the others have a hidden layer. In a pre-activation
    network a gate sees the sum at the end of a block, not activated features as published. Evaluate with the joint
    loss of network and probes (attack joint_pgd). For gates at the end of every residual branch, as for comparisons
    with other gates, write channel_gate: cifs instead.

    Args:
        network: architecture without such gates whose last stage is a sequence of blocks, such as resnet18,
            preact_resnet18, wide_resnet and torchvision's ResNets.
        hidden: hidden units of all probes but the last; 0 makes them linear.
        mask: function from the relevance of channels to the mask: "softmax" over channels, as released, with the mean
            1 / channels; "scaled", the same times the number of channels, which keeps the scale of the features;
            "sigmoid" and "tanh" (clipped at 0), forms that the paper compares without publishing them in full.
        detaches: no gradient flows from the mask to the features, as released. Attacks then see only a part of the
            gradient; to give them all of it, evaluate the same weights with false.

    Reference: Yan et al., "CIFS: Improving Adversarial Robustness of CNNs via Channel-wise Importance-based
        Feature Selection", ICML 2021.
    """
    assert isinstance(network, nn.Module)
    if gates_of(network):
        raise RobustCliError(
            "architecture.network.channel_gate: cifs: this network already has such gates; write channel_gate: none, "
            "or use the network without cifs around it"
        )
    stage = _last_stage(network)
    for number, channels in enumerate(_channels(network, stage, shape)):
        is_last = number == len(stage) - 1
        gate = ChannelGate(channels, shape.classes, 0 if is_last else hidden, mask, detaches)
        stage[number] = nn.Sequential(stage[number], gate)
    return network


def _last_stage(network: nn.Module) -> nn.Sequential:
    """Return the last sequence of blocks, outside of shortcuts.

    Blocks are modules that torch does not define and that are not sequences themselves.
    """
    stages = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential)
        and len(module)
        and not any(
            isinstance(block, nn.Sequential) or type(block).__module__.startswith("torch.nn") for block in module
        )
        # A projection is one module too if it is pooled or preconditioned.
        and "shortcut" not in name
    ]
    if not stages:
        raise _without_stages()
    return stages[-1]


def _without_stages() -> RobustCliError:
    return RobustCliError(
        "architecture.network: its last stage is not a sequence of convolutional blocks, so gates have no place; "
        "use resnet18, preact_resnet18 or wide_resnet"
    )


def _channels(network: nn.Module, stage: nn.Sequential, shape: ImageShape) -> list[int]:
    """Return the output channels of each block of a stage, measured with one black image."""
    seen: list[int] = []

    def record(_block: nn.Module, _inputs: tuple[Any, ...], z: Tensor) -> None:
        if z.dim() != 4:
            raise _without_stages()
        seen.append(z.shape[1])

    show_black_image(network, shape, [block.register_forward_hook(record) for block in stage])
    return seen
