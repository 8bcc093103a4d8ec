"""Factory of the layers of convolutional networks: convolutions, norms, activations, pools and gates.

The options of a spec select the kinds of layers. Architectures ask the factory for "a convolution with stride 2" or
"a norm of c channels", so their files need not know the options.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from robustcli.architectures import ImageShape
from robustcli.architectures.activations import ACTIVATIONS, SHARED, Reused
from robustcli.architectures.channel_gates import ChannelGate
from robustcli.architectures.convnorm import PreconditionedConv2d, RunningPreconditionedConv2d
from robustcli.architectures.convolutions import SameConv2d
from robustcli.architectures.downsampling import Pooled, SpectralPool
from robustcli.architectures.squeeze import ResidualSqueezeExcitation, SqueezeExcitation
from robustcli.errors import RobustCliError
from robustcli.registry.types import Activation, Downsample, Gate, PlainNorm

# DeepMind keeps 0.99 of the running statistics at every step.
_DEEPMIND_MOMENTUM = 0.01
# Reduction of the channels inside a residual gate, as published.
_RESIDUAL_SQUEEZE = 64


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Factory of the layers of one network. Every call returns a new layer, except for shared activations.

    Args:
        activation: nonlinearity.
        norm: batch; group (32 groups, or fewer if the channels require it); conv (preconditioned convolutions, then
            batch norms); conv_running (as conv, evaluated with running divisors); none.
        downsample: how a convolution halves the sides: with stride 2, or with stride 1 after a pool.
        channel_gate: gate at the end of residual branches, or after activated convolutions of networks without
            shortcuts. cifs multiplies channels by a mask of mean 1 from a linear probe of the class; no gradient flows
            from the mask to the features. The architecture cifs has the published places, masks and probes.
        reduction: reduction of the channels inside a gate se; residual_se always has the published 64.
        classes: number of classes, for the probes of cifs.
        momentum: momentum of running statistics.
        affine: norms have a scale and a shift.
        pads_same: strided convolutions use TensorFlow's "SAME" padding.
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
                f"architecture.norm: {self.norm} pads convolutions symmetrically, but this form does not; "
                "choose another form, or norm: batch"
            )

    @classmethod
    def chosen(
        cls, shape: ImageShape, activation: Activation, norm: PlainNorm, downsample: Downsample, channel_gate: Gate
    ) -> "Layers":
        """Return the factory for the options of a spec."""
        return cls(
            activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate, classes=shape.classes
        )

    def of_deepmind(self) -> "Layers":
        """Return the factory of DeepMind's networks: "SAME" padding, and slow running statistics."""
        return replace(self, momentum=_DEEPMIND_MOMENTUM, pads_same=True)

    @property
    def _preconditioned(self) -> type[PreconditionedConv2d] | None:
        return {"conv": PreconditionedConv2d, "conv_running": RunningPreconditionedConv2d}.get(self.norm)

    @cached_property
    def _learned_once(self) -> nn.Module:
        return ACTIVATIONS[self.activation]()

    def nonlinearity(self) -> nn.Module:
        """Return an activation."""
        return self._learned_once if self.activation in SHARED else ACTIVATIONS[self.activation]()

    def nonlinearities(self, count: int) -> list[nn.Module]:
        """Return the activations of one block; if the activation is shared, all after the first are references."""
        if self.activation in SHARED:
            first = self.nonlinearity()
            return [first, *(Reused(first) for _ in range(count - 1))]
        return [self.nonlinearity() for _ in range(count)]

    def normalization(self, channels: int, *, of_means: bool = False) -> nn.Module:
        """Return a norm for `channels` channels.

        Args:
            of_means: the maps have a single pixel. Then all channels form one group: a group of two values would keep
                only which one is larger.
        """
        if self.norm == "none":
            return nn.Identity()
        if self.norm == "group":
            # At least two channels per group, because one pixel of one channel has no variance.
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
        """Return a convolution with ceil(n / stride) outputs per side; a preconditioned one has its own bias.

        Dilated convolutions are plain ones with symmetric padding.
        """
        if stride == 1 or self.downsample == "strided":
            return self._convolution(inputs, outputs, kernel, stride, groups, bias, dilation)
        return Pooled(self.pool(stride), self._convolution(inputs, outputs, kernel, 1, groups, bias, dilation))

    def normed(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> tuple[nn.Module, nn.Module]:
        """Return a convolution and the norm of its output."""
        return self.convolution(inputs, outputs, kernel, stride, groups), self.normalization(outputs)

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
        """Return the pool of `downsample`.

        Raises:
            RobustCliError: `downsample` is flc or asap, which halve the sides, and the stride is not 2.
        """
        if self.downsample == "average":
            return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        if stride != 2:
            raise RobustCliError(
                f"architecture.downsample: {self.downsample} halves each side, but a stride is {stride}; "
                "write strides of 1 and 2, or downsample: average"
            )
        return SpectralPool(windowed=self.downsample == "asap")

    def gate(self, channels: int) -> nn.Module:
        """Return a channel gate, or the identity."""
        if self.channel_gate == "se":
            return SqueezeExcitation(channels, max(1, channels // self.reduction))
        if self.channel_gate == "residual_se":
            squeezed = max(1, channels // _RESIDUAL_SQUEEZE)
            return ResidualSqueezeExcitation(channels, squeezed, self.normalization(channels))
        if self.channel_gate == "cifs":
            assert self.classes is not None
            return ChannelGate(channels, self.classes, hidden=0, mask="scaled", detaches=True)
        return nn.Identity()


def enlarged(factor: int) -> nn.Module:
    """Return a layer that repeats every pixel `factor` times along both axes."""
    return nn.Identity() if factor == 1 else nn.Upsample(scale_factor=factor, mode="nearest")
