"""3D ResNets for short clips that are stored as images, with frames as channels."""

from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count


class ClipBlock(nn.Module):
    """Residual block: ReLU(two 3x3x3 convolutions + shortcut); the first one has the stride, in time and space."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            projection = nn.Conv3d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        out: Tensor = (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()
        return out


class ClipResNet(nn.Module):
    """Stem, stages of blocks, mean over time and sides, linear classifier."""

    def __init__(self, shape: ImageShape, frames: int, width: int, blocks: int, stages: int) -> None:
        super().__init__()
        self.frames = frames
        widths = [width * 2**stage for stage in range(stages)]
        self.conv1 = nn.Conv3d(shape.channels // frames, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        body: list[nn.Module] = []
        for inputs, outputs in zip([width, *widths], widths, strict=False):
            body.append(ClipBlock(inputs, outputs, 1 if inputs == outputs else 2))
            body += [ClipBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*body)
        self.linear = nn.Linear(widths[-1], shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        clip = x.reshape(len(x), self.frames, -1, *x.shape[2:]).transpose(1, 2)
        y = self.blocks(self.bn1(self.conv1(clip)).relu())
        logits: Tensor = self.linear(y.mean((2, 3, 4)))
        return logits


@ARCHITECTURES.register("clip_resnet", smoke={"frames": 3, "width": 4, "stages": 2})
def clip_resnet(
    shape: ImageShape, /, *, frames: Count | None = None, width: Count = 16, blocks: Count = 1, stages: Count = 3
) -> nn.Module:
    """3D ResNet for short clips: convolutions over time, height and width; each later stage halves all three.

    A clip is an image with frames as channels: all colors of the first frame, then of the second, and so on. So threat
    models and attacks treat a clip as one point, as in the literature. The published networks for clips of 112 pixels
    have a 7x7x7 stem and a pool; this one has a 3x3x3 stem, for small clips.

    Args:
        frames: frames of a clip; must divide the channels of an image. null: every channel is a frame.
        width: channels of the stem and the first stage; each later stage has twice as many.
        blocks: blocks in every stage.
        stages: number of stages.

    Reference: Hara et al., "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?", CVPR 2018; under
        attack: Lo and Patel, "Defending Against Multiple and Unforeseen Adversarial Videos", IEEE TIP 2022.
    """
    frames = shape.channels if frames is None else frames
    if shape.channels % frames:
        raise RobustCliError(f"architecture.frames: {frames} does not divide the {shape.channels} channels of the data")
    return ClipResNet(shape, frames, width, blocks, stages)
