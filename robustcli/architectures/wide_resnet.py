"""Wide residual networks, in the form of TRADES and in that of DeepMind (key families WRN and DM-WRN)."""

from typing import Literal

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.layers import Layers
from robustcli.architectures.wide_stages import DeepMindWideResNet, WideResNet
from robustcli.errors import RobustCliError
from robustcli.registry.published import Published
from robustcli.registry.types import Activation, Count, Counts3, Downsample, Gate, NormLayer

# Channels of the stem; stage g has 16 * widen * 2**g.
_STEM = 16


@ARCHITECTURES.register("wide_resnet", smoke={"depth": 10, "widen": 1}, published=(
    Published(0.6004, 0.8825, {}, "RST with AWP", "500k unlabelled", "Wu et al., NeurIPS 2020"),
    Published(0.6773, 0.9216, {"form": "deepmind", "activation": "silu"},
              "decoupled KL divergence", "generated, 20M", "Cui et al., NeurIPS 2024"),
    Published(0.6155, 0.8702, {"activation": "pssilu"},
              "not stated", "generated, 6M", "Dai et al., 2021, arXiv 2110.05626"),
    Published(0.5804, 0.8532, {"depth": 34}, "oracle-aligned", "none", "Addepalli et al., ECCV 2022"),
    Published(0.6027, None, {"depth": 34},
              "proxy distributions", "generated", "Sehwag et al., 2021, arXiv 2104.09425"),
    Published(0.6283, 0.9147, {"depth": 34, "form": "deepmind", "activation": "silu"},
              "HAT", "real", "Rade and Moosavi-Dezfooli, 2021"),
    Published(0.6041, 0.8653, {"depth": 34, "widen": 15},
              "persistency of excitation", "real", "Sridhar et al., 2021, arXiv 2106.02078"),
    Published(0.5809, 0.8610, {"depth": 34, "widen": 20},
              "data filtering", "none", "Chen and Lee, Pattern Recognition 2024"),
    Published(0.7069, 0.9325, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated, 50M", "Wang et al., ICML 2023"),
    Published(0.7159, 0.9311, {"depth": 82, "widen": 8, "form": "deepmind", "activation": "silu"},
              "not stated", "generated, 349M", "Bartoldson et al., ICML 2024"),
    Published(0.7371, 0.9368, {"depth": 94, "widen": 16, "form": "deepmind", "activation": "silu"},
              "not stated", "generated, 500M", "Bartoldson et al., ICML 2024"),
    Published(0.6464, 0.8850, {"depth": 106, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES with CutMix", "generated, 1M", "Rebuffi et al., 2021, arXiv 2103.01946"),
    Published(0.4404, 0.8714, {"depth": 34}, "adversarial training", "none", "Madry et al., ICLR 2018"),
    Published(0.5308, 0.8492, {"depth": 34}, "TRADES at eps 0.031", "none", "Zhang et al., ICML 2019"),
    Published(0.5342, 0.8534, {"depth": 34, "widen": 20}, "adversarial training", "none", "Rice et al., ICML 2020"),
    Published(0.5617, 0.8536, {"depth": 34}, "TRADES with AWP", "none", "Wu et al., NeurIPS 2020"),
    Published(0.5423, 0.8443, {"depth": 34},
              "MART with AWP", "none", "Wu et al., NeurIPS 2020", counted_by="the authors"),
    Published(0.5709, 0.8531, {"depth": 34}, "decoupled KL divergence", "none", "Cui et al., NeurIPS 2024"),
    Published(0.5166, 0.8462, {}, "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors"),
    Published(0.5197, 0.8493, {"depth": 34, "widen": 12},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors"),
    Published(0.5263, 0.8522, {"depth": 46, "widen": 14},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors"),
    Published(0.5280, 0.8551, {"depth": 70, "widen": 16},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors"),
    Published(0.5953, 0.8969, {}, "RST", "500k unlabelled", "Carmon et al., NeurIPS 2019"),
    Published(0.5686, 0.8564, {"depth": 34, "widen": 20, "form": "deepmind", "activation": "silu"},
              "TRADES", "none", "Gowal et al., 2020, arXiv 2010.03593"),
    Published(0.5720, 0.8529, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "none", "Gowal et al., 2020, arXiv 2010.03593"),
    Published(0.6280, 0.8948, {"form": "deepmind", "activation": "silu"},
              "TRADES", "500k unlabelled", "Gowal et al., 2020, arXiv 2010.03593"),
    Published(0.6588, 0.9110, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "500k unlabelled", "Gowal et al., 2020, arXiv 2010.03593"),
    Published(0.5761, 0.8609, {"form": "deepmind", "activation": "silu"},
              "TRADES with CutMix", "none", "Rebuffi et al., 2021, arXiv 2103.01946", counted_by="the authors"),
    Published(0.6007, 0.8725, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES with CutMix", "none", "Rebuffi et al., 2021, arXiv 2103.01946", counted_by="the authors"),
    Published(0.6075, 0.8733, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Rebuffi et al., 2021, arXiv 2103.01946"),
    Published(0.6425, 0.8854, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Rebuffi et al., 2021, arXiv 2103.01946"),
    Published(0.6658, 0.9223, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "500k unlabelled", "Rebuffi et al., 2021, arXiv 2103.01946"),
    Published(0.6344, 0.8750, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Gowal et al., NeurIPS 2021"),
    Published(0.6611, 0.8874, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Gowal et al., NeurIPS 2021"),
    Published(0.6731, 0.9244, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Wang et al., ICML 2023"),
    Published(0.2886, 0.6038, {"depth": 34}, "TRADES with AWP", "none", "Wu et al., NeurIPS 2020", data="CIFAR-100"),
    Published(0.3185, 0.6875, {"depth": 34},
              "oracle-aligned", "none", "Addepalli et al., ECCV 2022", data="CIFAR-100"),
    Published(0.3191, 0.6576, {"depth": 34},
              "decoupled KL divergence", "none", "Cui et al., NeurIPS 2024", data="CIFAR-100"),
    Published(0.2526, 0.5630, {},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors", data="CIFAR-100"),
    Published(0.2547, 0.5608, {"depth": 34, "widen": 12},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors", data="CIFAR-100"),
    Published(0.2628, 0.5678, {"depth": 46, "widen": 14},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors", data="CIFAR-100"),
    Published(0.2612, 0.5693, {"depth": 70, "widen": 16},
              "TRADES", "none", "Huang et al., CVPR 2023", counted_by="the authors", data="CIFAR-100"),
    Published(0.3003, 0.6086, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "none", "Gowal et al., 2020, arXiv 2010.03593", data="CIFAR-100"),
    Published(0.3688, 0.6915, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "500k unlabelled", "Gowal et al., 2020, arXiv 2010.03593", data="CIFAR-100"),
    Published(0.2980, 0.6297, {"form": "deepmind", "activation": "silu"},
              "TRADES with CutMix", "none", "Rebuffi et al., 2021, arXiv 2103.01946",
              counted_by="the authors", data="CIFAR-100"),
    Published(0.3243, 0.6576, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES with CutMix", "none", "Rebuffi et al., 2021, arXiv 2103.01946",
              counted_by="the authors", data="CIFAR-100"),
    Published(0.3206, 0.6241, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Rebuffi et al., 2021, arXiv 2103.01946", data="CIFAR-100"),
    Published(0.3464, 0.6356, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Rebuffi et al., 2021, arXiv 2103.01946", data="CIFAR-100"),
    Published(0.3883, 0.7258, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Wang et al., ICML 2023", data="CIFAR-100"),
    Published(0.4267, 0.7522, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Wang et al., ICML 2023", data="CIFAR-100"),
    Published(0.3918, 0.7385, {"form": "deepmind", "activation": "silu"},
              "decoupled KL divergence", "generated", "Cui et al., NeurIPS 2024", data="CIFAR-100"),
    Published(0.7366, 0.8851, {"depth": 34},
              "adversarial training with AWP", "none", "Wu et al., NeurIPS 2020", threat="l2 0.5"),
    Published(0.7450, 0.9090, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "none", "Gowal et al., 2020, arXiv 2010.03593", threat="l2 0.5"),
    Published(0.8053, 0.9474, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "500k unlabelled", "Gowal et al., 2020, arXiv 2010.03593", threat="l2 0.5"),
    Published(0.7880, 0.9179, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Rebuffi et al., 2021, arXiv 2103.01946", threat="l2 0.5"),
    Published(0.8042, 0.9241, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Rebuffi et al., 2021, arXiv 2103.01946", threat="l2 0.5"),
    Published(0.8232, 0.9574, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "500k unlabelled", "Rebuffi et al., 2021, arXiv 2103.01946", threat="l2 0.5"),
    Published(0.8368, 0.9516, {"form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Wang et al., ICML 2023", threat="l2 0.5"),
    Published(0.8497, 0.9554, {"depth": 70, "widen": 16, "form": "deepmind", "activation": "silu"},
              "TRADES", "generated", "Wang et al., ICML 2023", threat="l2 0.5"),
    Published(0.9634, 0.9926, {"form": "deepmind", "activation": "silu"},
              "TRADES", "none", "Gowal et al., 2020, arXiv 2010.03593",
              counted_by="the authors", data="MNIST", threat="linf 0.3"),
))  # fmt: skip
def wide_resnet(
    shape: ImageShape,
    /,
    *,
    depth: Count = 28,
    widen: Count = 10,
    form: Literal["trades", "deepmind"] = "trades",
    activation: Activation = "relu",
    norm: NormLayer = "batch",
    downsample: Downsample = "strided",
    channel_gate: Gate = "none",
    stem_stride: Literal[1, 2] = 1,
    strides: Counts3 = (1, 2, 2),
    upsample: Count = 1,
) -> nn.Module:
    """Wide residual network WRN-depth-widen: three stages of wide pre-activation blocks.

    The published "deepmind" networks use silu; the activation stays what `activation` says. There is no
    dropout, because the published robust networks set its rate to 0.

    Args:
        depth: layers, 6 n + 4 for n blocks per stage.
        widen: factor on the widths 16, 32 and 64 of the three stages.
        form: "trades" pads strided convolutions symmetrically; "deepmind" pads them at the right and the bottom
            only, and its running statistics move slower (momentum 0.01). Weights of one lose accuracy in the other.
        activation: the nonlinearity, everywhere; pssilu is learned once for the whole network.
        norm: batch, group, conv (preconditioned convolutions beside batch norms) or conv_running (conv, evaluated with
            a running mean of the divisors); both are published for networks that normalise what a convolution puts
            out, and not for the form "deepmind".
        downsample: convolutions that are strided, or average, flc or asap pooling and then a convolution.
        channel_gate: what ends a residual branch: none, se, residual_se or cifs (its probes learn with the defense
            cifs).
        stem_stride: 2 halves the resolution at once, for about a quarter of the cost.
        strides: of the three stages; [1, 1, 2] makes the last map twice as wide.
        upsample: factor that images are enlarged by, each pixel repeated, before the stem.

    Reference: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; forms: Zhang et al., "Theoretically
    Principled Trade-off between Robustness and Accuracy", ICML 2019, and Gowal et al., "Uncovering the Limits of
    Adversarial Training against Norm-Bounded Adversarial Examples", 2020; strides and upsampling: Xu et al.,
    "Understanding Adversarial Robustness from Feature Maps of Convolutional Layers", TNNLS 2025.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        nearest = 6 * max(1, round((depth - 4) / 6)) + 4
        raise RobustCliError(
            f"architecture.depth: {depth} is not 6 n + 4 for n >= 1 blocks in each of three stages; try {nearest}"
        )
    network = {"trades": WideResNet, "deepmind": DeepMindWideResNet}[form]
    return network(
        shape,
        (blocks, blocks, blocks),
        (_STEM * widen, 2 * _STEM * widen, 4 * _STEM * widen),
        Layers(
            activation=activation, norm=norm, downsample=downsample, channel_gate=channel_gate, classes=shape.classes
        ),
        stem=_STEM,
        stem_stride=stem_stride,
        strides=strides,
        upsample=upsample,
    )
