"""The switchboard: which layers the convolutional families are made of, as a spec's options say.

A family asks for "a convolution that halves", "a norm of c channels", "an activation", and its file reads like
its figure; none of them knows what there is to choose from.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from robustcli.architectures.activations import ACTIVATIONS, SHARED, Again
from robustcli.architectures.channel_gates import ChannelGate
from robustcli.architectures.convnorm import PreconditionedConv2d, RunningPreconditionedConv2d
from robustcli.architectures.convolutions import SameConv2d
from robustcli.architectures.downsampling import Pooled, SpectralPool
from robustcli.architectures.squeeze import ResidualSqueezeExcitation, SqueezeExcitation
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Downsample, Gate, PlainNorm

# As published, the reduction of the channels inside a residual gate.
_RESIDUAL_SQUEEZE = 64


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The parts that one network is built from. Every call makes a new layer, but for activations learned once.

    Args:
        activation: the nonlinearity.
        norm: batch; group (32 groups, fewer where the channels do not allow it); conv: batch norms, and
            preconditioned convolutions before them; conv_running: these, evaluated with running divisors; none.
        downsample: how a convolution with stride 2 gets there: by itself, or with stride 1 after a pooling.
        channel_gate: what the end of a residual branch, or an activated convolution of a plain network, goes through.
            cifs: a mask of mean 1, a constant to the features, from a linear probe of the class, so that a branch
            keeps its scale; in all these places, to compare it with other gates. Architecture cifs has the published
            placement, masks and probes.
        reduction: of the channels inside a gate se; that of residual_se is published as 64.
        classes: that the probes of cifs tell apart.
        momentum: of running statistics.
        affine: whether norms have a scale and a shift.
        pads_same: whether strided convolutions have TensorFlow's "SAME" padding.
    """

    activation: Activation = "relu"
    norm: PlainNorm = "batch"
    downsample: Downsample = "strided"
    channel_gate: Gate = "none"
    reduction: int = 16
    classes: int | None = None
    momentum: float = 0.1
    affine: bool = True
    pads_same: bool = False

    def __post_init__(self) -> None:
        if self.pads_same and self._preconditioned:
            raise RobustCliError(
                f"architecture.norm: {self.norm} pads its convolutions symmetrically, and this form does not; "
                "choose another form, or norm: batch"
            )

    @property
    def _preconditioned(self) -> type[PreconditionedConv2d] | None:
        return {"conv": PreconditionedConv2d, "conv_running": RunningPreconditionedConv2d}.get(self.norm)

    @cached_property
    def _learned_once(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()

    def nonlinearity(self) -> nn.Module:
        """An activation."""
        return self._learned_once if self.activation in SHARED else ACTIVATIONS[self.activation]()

    def nonlinearities(self, count: int) -> list[nn.Module]:
        """Activations for so many places of one block; of one that is learned once, all but the first refer to it."""
        if self.activation in SHARED:
            first = self.nonlinearity()
            return [first, *(Again(first) for _ in range(count - 1))]
        return [self.nonlinearity() for _ in range(count)]

    def normalisation(self, channels: int, *, of_means: bool = False) -> nn.Module:
        """A norm of so many channels.

        Args:
            of_means: whether the maps have a single pixel. All channels are one group then: of two numbers in a group
                nothing would be left but which one is larger.
        """
        if self.norm == "none":
            return nn.Identity()
        if self.norm == "group":
            # At least two channels in each, because a group of one pixel has no variance.
            groups = 1 if of_means else max(1, math.gcd(2 * 32, channels) // 2)
            return nn.GroupNorm(groups, channels, affine=self.affine)
        return nn.BatchNorm2d(channels, momentum=self.momentum, affine=self.affine)

    def convolution(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        *,
        bias: bool = False,
        dilation: int = 1,
    ) -> nn.Module:
        """A convolution whose outputs have the side ceil(n / stride); a preconditioned one has its own bias.

        Dilated ones are plain convolutions with symmetric padding; no family has them with another.
        """
        if stride == 1 or self.downsample == "strided":
            return self._convolution(inputs, outputs, kernel, stride, groups, bias, dilation)
        return Pooled(self.pool(stride), self._convolution(inputs, outputs, kernel, 1, groups, bias, dilation))

    def normed(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        """A convolution and the norm of what it puts out."""
        return self.convolution(inputs, outputs, kernel, stride, groups), self.normalisation(outputs)

    def _convolution(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, bias: bool, dilation: int
    ) -> nn.Module:
        if dilation > 1:
            assert self._preconditioned is None
            assert not self.pads_same
            padding = dilation * (kernel // 2)
            return nn.Conv2d(
                inputs, outputs, kernel, stride, padding=padding, dilation=dilation, groups=groups, bias=bias
            )
        if self._preconditioned:
            return self._preconditioned(inputs, outputs, kernel, stride, groups)
        if self.pads_same and stride > 1 and kernel > 1:
            return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=bias)
        return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)

    def pool(self, stride: int) -> nn.Module:
        """The pooling of a `downsample` that pools.

        Raises:
            RobustCliError: the spectrum is cut to a half, so the stride must be 2.
        """
        if self.downsample == "average":
            return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        if stride != 2:
            raise RobustCliError(
                f"architecture.downsample: {self.downsample} halves each side, and the strides ask for {stride}; "
                "write strides of 1 and 2, or downsample: average"
            )
        return SpectralPool(windowed=self.downsample == "asap")

    def gate(self, channels: int) -> nn.Module:
        """A channel gate, or what leaves channels as they are."""
        if self.channel_gate == "se":
            return SqueezeExcitation(channels, max(1, channels // self.reduction))
        if self.channel_gate == "residual_se":
            squeezed = max(1, channels // _RESIDUAL_SQUEEZE)
            return ResidualSqueezeExcitation(channels, squeezed, self.normalisation(channels))
        if self.channel_gate == "cifs":
            assert self.classes is not None
            return ChannelGate(channels, self.classes, hidden=0, mask="scaled", detaches=True)
        return nn.Identity()


def enlarged(factor: int) -> nn.Module:
    """Images with every pixel repeated `factor` times along both axes, before the first layer."""
    return nn.Identity() if factor == 1 else nn.Upsample(scale_factor=factor, mode="nearest")
