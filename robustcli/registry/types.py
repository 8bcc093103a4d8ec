"""Types for annotations of parameters of registered members.

The signature of a member is the schema of its part of a spec. It is read without importing the member
(see registry/signatures.py), so annotations may use only built-in types and the names of this module.

A type with a `Doc` describes every parameter that has it, unless the member's docstring describes the parameter itself.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

Norm = Literal["linf", "l2", "l1"]
Precision = Literal["fp32", "bf16", "fp16"]
AttackBn = Annotated[
    Literal["eval", "train", "batch_no_update"],
    Doc(
        "mode of the model while it is attacked: eval (running statistics), train (batch statistics, and every forward "
        "updates the running ones) or batch_no_update; by default as in the authors' code, if there is any."
    ),
]
Activation = Annotated[
    Literal[
        "relu",
        "leaky_relu",
        "silu",
        "gelu",
        "elu",
        "softplus",
        "psoftplus",
        "relu_smooth_backward",
        "smooth_relu",
        "pssilu",
        "sparta_like",
    ],
    Doc("nonlinearity of all layers; pssilu has one set of parameters for the whole network."),
]
NormLayer = Annotated[
    Literal["batch", "group", "conv", "conv_running"],
    Doc(
        "batch, group, conv (preconditioned convolutions, then batch norms) or conv_running (as conv, but evaluated "
        "with a running mean of the divisors), published for networks that normalize the output of a convolution."
    ),
]
# For networks with convolutions that cannot be preconditioned: depthwise, dilated, or padded on one side.
NormBeside = Annotated[Literal["batch", "group"], Doc("batch or group.")]
# Names of devices; `cpu:1` would be the same as cpu.
DEVICE = r"auto|cpu|cuda(:[0-9]{1,3})?"
Downsample = Annotated[
    Literal["strided", "average", "flc", "asap"],
    Doc("how convolutions halve the sides: strided, or average, flc or asap pooling before a convolution."),
]
# For networks without shortcuts, which may have no norms and pools between convolutions.
PlainNorm = Annotated[
    Literal["none", "batch", "group", "conv", "conv_running"],
    Doc(
        "norm after every convolution: none, batch, group, conv (preconditioned convolutions, then batch norms) or "
        "conv_running."
    ),
]
PlainDownsample = Literal["max", "average", "flc", "asap"]
Gate = Annotated[
    Literal["none", "se", "residual_se", "cifs"],
    Doc(
        "gate at the end of every residual branch, or after every activated convolution of a network without "
        "shortcuts: none, se, residual_se or cifs (its probes learn with the defense cifs)."
    ),
]
# For networks of other packages, most of which have stems for large images.
Stem = Annotated[
    Literal["as_it_is", "small"],
    Doc(
        '"small" keeps the resolution of small images: the first convolution gets stride 1 and a kernel of at most '
        "3x3, and a pool right after it is removed, so resnet18 becomes the resnet18 of this project. Later strides "
        "stay. Networks that cut images into patches have no such stem and are rejected."
    ),
]

# Larger numbers do not fit into tensors.
_LARGEST = 2**63 - 1
Count = Annotated[int, Ge(1), Le(_LARGEST)]
Counts3 = tuple[Count, Count, Count]
Counts4 = tuple[Count, Count, Count, Count]
Counts5 = tuple[Count, Count, Count, Count, Count]
StemStride = Annotated[
    Literal[1, 2],
    Doc("stride of the first convolution; 2 halves the resolution at once, for about a quarter of the cost."),
]
Upsample = Annotated[Count, Doc("factor by which images are enlarged before the stem; every pixel is repeated.")]
BatchSize = Annotated[Count, Doc("images at once; changes only memory and speed.")]
# For networks of cells: two of them reduce, with one before those.
Cells = Annotated[int, Ge(3)]
# Nodes of a cell, each a sum of operations on earlier states such as "sep3 0 + skip 1".
Nodes = tuple[str, ...]
Size = Annotated[int, Ge(0), Le(_LARGEST)]
Positive = Annotated[float, Gt(0)]
AboveOne = Annotated[float, Gt(1)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
ProperShare = Annotated[float, Ge(0), Lt(1)]
Radius = Annotated[Fraction, Ge(0)]
Steps = Annotated[Size, Doc("gradient steps of the attack.")]
StepSize = Annotated[
    Positive | None,
    Doc("length of one step in the unit of eps; null is a quarter of eps (2/255 for 8/255)."),
]
Start = Annotated[
    Literal["random", "clean"],
    Doc("start of the attack: a random point of the threat set, or the clean image."),
]
StartStd = Annotated[Positive, Doc("the attack starts at x plus this times normal noise.")]
# Lowest and highest momentum of a cycle.
MomentumRange = tuple[ProperShare, ProperShare]
# Of a pixel and channel, and of JPEG.
Bits = Annotated[int, Ge(1), Le(8)]
Quality = Annotated[int, Ge(1), Le(100)]


class Ratio(float):
    """A float written as a quotient, such as 8/255, with its exact value."""

    fraction: Fraction

    def __new__(cls, fraction: Fraction) -> "Ratio":
        ratio = super().__new__(cls, fraction.numerator / fraction.denominator)
        ratio.fraction = fraction
        return ratio


@dataclass(frozen=True, kw_only=True)
class OtherThreat:
    """An additional threat model, for methods that train against several.

    Args:
        norm: linf, l2 or l1.
        eps: radius as a number or a quotient such as 8/255; pixels of [0, 1] for linf, length for l2, sum for l1.
        step_size: length of one step of the attack, in the unit of this eps; null is a quarter of it.
    """

    norm: Norm
    eps: Radius
    step_size: Positive | None = None


def exact_text(number: Fraction) -> str:
    """Return an exact text of a number: a short decimal if possible, otherwise a quotient."""
    decimal = repr(number.numerator / number.denominator)
    return decimal.removesuffix(".0") if len(decimal) <= 7 and Fraction(decimal) == number else str(number)


@dataclass(frozen=True)
class Family:
    """Represents "a member of this registry" in an annotation that is read without importing.

    Args:
        name: name of the registry.
        options: a settings dataclass whose fields a spec writes next to the member's own, or None.
    """

    name: str
    options: type | None = None


# Protocols in signatures, and the registries of their members.
PROTOCOLS = {
    "Attack": Family("attacks"),
    "WeightPerturbation": Family("weights"),
    "Averaging": Family("averaging"),
    "Regularizer": Family("regularizers"),
    "Evaluator": Family("evaluators"),
    "Body": Family("architectures"),
}
