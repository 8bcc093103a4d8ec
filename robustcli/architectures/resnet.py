"""ResNets for small images, with activation after normalization (key family RN)."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.postactivation import BasicBlock, Bottleneck, small_resnet
from robustcli.architectures.weight_names import Settings, Tensors, usual_residual_depth, width_of
from robustcli.registry.types import Activation, Count, Counts4, Downsample, Gate, NormLayer, StemStride, Upsample

# Block and number of blocks of each stage, by number of layers with weights.
_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def suggested(tensors: Tensors) -> Settings | None:
    """Depth and width; weights with the classifier of torchvision belong to its networks."""
    depth = usual_residual_depth(tensors)
    if depth is None or "fc.weight" in tensors or "bn1.weight" not in tensors:
        return None
    return {"depth": depth, **width_of(tensors["conv1.weight"])}


@ARCHITECTURES.register(
    "resnet18", fixed={"depth": 18}, title="ResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
@ARCHITECTURES.register(
    "resnet34", fixed={"depth": 34}, title="ResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
@ARCHITECTURES.register(
    "resnet50", fixed={"depth": 50}, title="ResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
@ARCHITECTURES.register(
    "resnet101", fixed={"depth": 101}, title="ResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
@ARCHITECTURES.register(
    "resnet152", fixed={"depth": 152}, title="ResNet-{depth}", suggested_by="suggested", smoke={"width": 4}
)
def resnet(
    shape: ImageShape,
    /,
    *,
    depth: int,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    width: Count = 64,
    stem_stride: StemStride = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Upsample = 1,
) -> nn.Module:
    """ResNet-{depth} for small images, with activation after normalization.

    The stem is a 3x3 convolution without a pool, so 32 pixels become 4 before the global average. Up to depth 34 a
    block has two 3x3 convolutions; deeper networks have bottleneck blocks.

    Args:
        depth: layers with weights.
        width: channels of the stem and the first stage; each later stage has twice as many.
        strides: strides of the four stages; [1, 1, 2, 2] is ResNet{depth}-1122 of Xu et al., whose last map is 8 pixels
            wide.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; strides and upsampling: Xu et
        al., "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    block, blocks = _DEPTHS[depth]
    layers = Layers.chosen(shape, activation, norm, downsample, channel_gate)
    return small_resnet(
        shape,
        block,
        blocks,
        layers,
        width=width,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
