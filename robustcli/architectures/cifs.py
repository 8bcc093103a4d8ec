"""CIFS: any network of stages, with gates that weigh the channels of its last stage."""

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
    """Another network, with a channel gate after every block of its last stage.

    Each gate has a probe that predicts the class; channels are weighed by the gradient of the probe's logits of
    two classes: in evaluation the two most likely ones, in training (with the defense of the same name) the
    label and the probe's second. The last block has a linear probe, those before it one with a hidden layer.
    In a pre-activation network a gate sees the sum that a block puts out, and not activated features as
    published. Attackers should maximise the joint loss of network and probes (attack joint_pgd). Gates at the end of
    every residual branch, to be compared with other gates, are not these: write channel_gate: cifs instead.

    Args:
        network: any architecture without gates of this kind whose last stage is a sequence of blocks: resnet18,
            preact_resnet18, wide_resnet and torchvision's ResNets.
        hidden: units of the hidden layer of the probes before the last; 0 makes them linear.
        mask: what becomes of a channel's relevance g: "softmax" over channels as released, whose mean is one over
            the number of channels; "scaled", that times the number of channels, which keeps the scale of the
            features; "sigmoid" and "tanh" (cut at 0) name forms that the paper compares and that are not
            published in full.
        detaches: whether the mask is a constant to the features, as released. Attacks on a network that has it so
            see a part of the gradient alone; the same weights with false give them all of it.

    Reference: Yan et al., "CIFS: Improving Adversarial Robustness of CNNs via Channel-wise Importance-based
        Feature Selection", ICML 2021.
    """
    assert isinstance(network, nn.Module)
    if gates_of(network):
        raise RobustCliError(
            "architecture.network.channel_gate: cifs: this network has such gates already, and one probe would guess "
            "for another; write channel_gate: none, or the network itself without cifs around it"
        )
    stage = _last_stage(network)
    for number, channels in enumerate(_channels(network, stage, shape)):
        is_last = number == len(stage) - 1
        gate = ChannelGate(channels, shape.classes, 0 if is_last else hidden, mask, detaches)
        stage[number] = nn.Sequential(stage[number], gate)
    return network


def _last_stage(network: nn.Module) -> nn.Sequential:
    """The last sequence of blocks, which are modules that torch itself does not have."""
    stages = [
        module
        for module in network.modules()
        if isinstance(module, nn.Sequential)
        and len(module)
        and not any(type(block).__module__.startswith("torch.nn") for block in module)
    ]
    if not stages:
        raise _without_stages()
    return stages[-1]


def _without_stages() -> RobustCliError:
    return RobustCliError(
        "architecture.network: its last stage is no sequence of blocks of channels, so there is no place for gates; "
        "resnet18, preact_resnet18 and wide_resnet have one"
    )


def _channels(network: nn.Module, stage: nn.Sequential, shape: ImageShape) -> list[int]:
    """The channels that each block of a stage puts out, seen on one black image."""
    seen: list[int] = []

    def see(_block: nn.Module, _inputs: tuple[Any, ...], z: Tensor) -> None:
        if z.dim() != 4:
            raise _without_stages()
        seen.append(z.shape[1])

    show_black_image(network, shape, [block.register_forward_hook(see) for block in stage])
    return seen
