"""Input gradient regularization: a penalty on the gradient of the loss in the pixels."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustcli.attacks.crafting import crafting_mode
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import REGULARIZERS, RunningRegularizer
from robustcli.optimization.stateless import Stateless
from robustcli.registry.types import NonNegative


@REGULARIZERS.register("grad_norm", second_derivatives=True, smoke={"weight": 0.1}, passes=(1, 1, 2))
@dataclass(frozen=True, kw_only=True)
class GradNorm(Stateless, RunningRegularizer):
    """weight * mean over the clean images of the size of the gradient of their cross-entropy in the pixels.

    Costs one forward, one backward to the images and the derivative of both. Batch norms use batch statistics without
    updating running ones, and dropout is off.

    Args:
        weight: lambda. The authors tune it for every data set; the default is ours. 0 is no penalty.
        norm: "l2", the squared Euclidean length as published, or "l1", the sum of absolute values: to first order, the
            gain of the loss inside an linf ball per unit of its radius.

    Reference: Drucker and LeCun, IEEE Transactions on Neural Networks, 1992; Ross and Doshi-Velez, AAAI 2018,
        arXiv 1711.09404.
    """

    weight: NonNegative = 1.0
    norm: Literal["l2", "l1"] = "l2"

    def penalty(self, model: nn.Module, x: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        if not self.weight:
            return None
        # Without fused attention kernels, which have no second derivative.
        with crafting_mode(model, "batch_no_update"), sdpa_kernel(SDPBackend.MATH):
            grad, _, _ = input_gradient(model, x, LOSSES["ce"], y, create_graph=True)
        sizes = grad.flatten(1).square() if self.norm == "l2" else grad.flatten(1).abs()
        mean: Tensor = sizes.sum(1).mean()
        return self.weight * mean
