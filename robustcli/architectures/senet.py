"""SENet-18 for small images: pre-activation blocks that end with squeeze-and-excitation."""

from typing import Literal

from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers, enlarged
from robustcli.architectures.preactivation import PreActBlock
from robustcli.fields import Activation, Count, Counts4, Downsample, NormLayer


class SENet(nn.Module):
    """Stem with norm and activation, four stages of two blocks, global average, linear classifier.

    Args:
        strides: of the first block of each stage.
        upsample: factor that the images are enlarged by.
    """

    def __init__(
        self, shape: ImageShape, layers: Layers, *, width: int, stem_stride: int, strides: Counts4, upsample: int
    ) -> None:
        super().__init__()

        def stage(number: int) -> nn.Sequential:
            outputs = width * 2**number
            inputs = width if number == 0 else outputs // 2
            return nn.Sequential(
                PreActBlock(inputs, outputs, strides[number], layers, projects_raw=False),
                PreActBlock(outputs, outputs, 1, layers, projects_raw=False),
            )

        self.enlarged = enlarged(upsample)
        self.conv1 = layers.convolution(shape.channels, width, 3, stem_stride)
        self.bn1 = layers.normalisation(width)
        self.activation = layers.nonlinearity()
        self.layer1, self.layer2, self.layer3, self.layer4 = map(stage, range(4))
        self.linear = nn.Linear(8 * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(self.enlarged(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@ARCHITECTURES.register("senet18", smoke={"width": 8, "reduction": 2})
def senet18(
    shape: ImageShape,
    /,
    *,
    reduction: Count = 16,
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    width: Count = 64,
    stem_stride: Literal[1, 2] = 1,
    strides: Counts4 = (1, 2, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """SENet-18 for small images: eight pre-activation blocks, each ending with squeeze-and-excitation.

    Nothing normalises the last features, and the stem is normalised although a block with a norm follows: both as in
    the network that is in use for 32 pixels. Projections see the activated input.

    Args:
        reduction: of the channels inside squeeze-and-excitation, which keeps one at least.
        activation: the nonlinearity, everywhere but inside squeeze-and-excitation.
        norm: batch, group, or conv (preconditioned convolutions beside batch norms).
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        width: channels of the stem and the first stage; each later stage doubles it.
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the four stages; [1, 1, 2, 2] makes the last map twice as wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """
    layers = Layers(activation=activation, norm=norm, downsample=downsample, channel_gate="se", reduction=reduction)
    return SENet(shape, layers, width=width, stem_stride=stem_stride, strides=strides, upsample=upsample)
