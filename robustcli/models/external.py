"""A network of another program, prepared for attacks and checks: float32 logits, and errors that name the batch."""

from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape, Network, Normalize
from robustcli.errors import EvaluationError, Interrupted, RobustCliError
from robustcli.models.source import reason
from robustcli.preprocessors import Preprocessor
from robustcli.runtime.out_of_memory import is_out_of_memory


class ExternalNetwork(Network):
    """Normalization, then a network that `robust train` did not make; logits are float32.

    Args:
        normalize: the first layer.
        body: the network, in its own precision.
        preprocess: transformation of the pixels before the normalization; None is none.
    """

    def __init__(self, normalize: Normalize, body: nn.Module, preprocess: Preprocessor | None = None) -> None:
        super().__init__(normalize, body, preprocess)
        kinds = {one.dtype for one in body.parameters() if one.is_floating_point()}
        self.dtype = kinds.pop() if len(kinds) == 1 else torch.float32

    def forward(self, x: Tensor) -> Tensor:
        try:
            logits = self.body(self.prepared(x).to(self.dtype))
        except (Interrupted, RobustCliError):
            raise
        except (Exception, SystemExit) as error:  # code of other packages may raise anything
            if is_out_of_memory(error):
                raise
            count = f"{len(x)} image{'s' if len(x) > 1 else ''}"
            shape = "x".join(map(str, x.shape[1:]))
            raise EvaluationError(
                f"the network fails on a batch of {count} of {shape} ({_said(error)}); it must take these images in "
                "batches of any size"
            ) from error
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            return logits  # type: ignore[no-any-return]  # the checks before an evaluation say what is wrong
        # A copy, because tensors of inference mode cannot be part of a graph.
        return (logits.clone() if logits.is_inference() else logits).float()


def _said(error: BaseException) -> str:
    kind, said = type(error).__name__, reason(error)
    return said if said.startswith(kind) else f"{kind}: {said}"


def precision_note(network: ExternalNetwork, name: str) -> list[str]:
    """A note for a network that computes in another precision than float32."""
    if network.dtype == torch.float32:
        return []
    kind = str(network.dtype).removeprefix("torch.")
    return [f"{name}: computes in {kind}; images are converted to it, and its logits to float32"]


def require_values(network: nn.Module, name: str) -> None:
    """Raise for a network with tensors that have no values.

    Raises:
        RobustCliError: a parameter or buffer is on the device meta.
    """
    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise RobustCliError(
                f"{name}: {key} is on the device meta, so it has no values; load the weights when the network is built"
            )


def require_logits(
    network: nn.Module, shape: ImageShape, name: str, device: torch.device, *, at_least: int | None = None
) -> None:
    """Check with two gray images that the network gives logits, before anything expensive.

    Args:
        at_least: minimum number of classes of the network; None means exactly those of the data.

    Raises:
        RobustCliError: it does not accept such images, or gives other logits.
    """
    images = torch.full((2, *shape.size), 0.5, device=device)
    try:
        with torch.no_grad():
            logits: Any = network(images)
    except (RobustCliError, RuntimeError) as error:
        raise RobustCliError(f"{name}: does not take {shape.text}: {reason(error)}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if isinstance(found, tuple) and len(found) == 2 and found[0] == 2:
        if found[1] == shape.classes or (at_least is not None and found[1] >= at_least):
            return
        hint = "; a class without test images needs an empty folder, or a name in `classes`"
        raise RobustCliError(
            f"{name}: gives {found[1]} classes for 2 images; the data have {shape.classes} classes, so "
            f"(2, {shape.classes}) is expected{hint if found[1] > shape.classes else ''}"
        )
    raise RobustCliError(
        f"{name}: gives an output of {found} for 2 images; the data have {shape.classes} classes, so "
        f"(2, {shape.classes}) is expected"
    )
