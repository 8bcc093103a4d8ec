"""Networks that attacks search with: another network, or a fast copy of the network evaluated.

The network itself in single precision confirms every adversarial example, so the search can miss some but never add
wrong ones.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from robustcli.attacks.faster_layers import ease_image_gradients, simplify_norms
from robustcli.errors import EvaluationError, in_one_line
from robustcli.runtime.memory_format import to_channels_last
from robustcli.runtime.precision import autocast

Precision = Literal["fp32", "fast"]
# With at most so many convolutions, a CPU is faster in the plain memory format: images and the input of the linear
# layers would be transposed for the sake of one or two layers.
_FEW_CONVOLUTIONS = 2


class Surrogate(Protocol):
    """Settings of a network that an attack searches with; surrogates derive from this class.

    Attributes:
        is_copy: whether it computes the same as the network up to rounding. Images that fool only the copy are attacked
            again with the network.
        is_coarse: whether a copy rounds so coarsely that survivors get a few last steps with the network.
    """

    @property
    def is_copy(self) -> bool:
        return False

    @property
    def is_coarse(self) -> bool:
        return False

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """The network to search with, given the network evaluated."""
        ...


@dataclass(frozen=True, kw_only=True)
class FastCopy(Surrogate):
    """Search with a `SurrogateCopy`; its settings are described there."""

    precision: Precision = "fp32"
    is_compiled: bool = False

    @property
    def is_copy(self) -> bool:
        return True

    @property
    def is_coarse(self) -> bool:
        return self.precision == "fast"

    def __call__(self, model: nn.Module) -> nn.Module:
        return SurrogateCopy(model, precision=self.precision, is_compiled=self.is_compiled)


class SurrogateCopy(nn.Module):
    """A copy in channels_last, optionally in bf16 or compiled; logits are float32.

    In fp32 on a CPU its batch norms are one product and one sum for each value, which takes less time. Copies with few
    convolutions stay in the plain memory format on a CPU, unless they are compiled, and the gradient of a strided
    convolution in the images takes less time.

    Args:
        model: network in eval mode with gradients of the weights disabled; not changed.
        precision: "fp32", or "fast" for convolutions and matrix products in bf16.
        is_compiled: compile one program for all batch sizes with torch.compile, at the first batch. If this fails,
            the search warns and continues without it.

    Raises:
        EvaluationError: the model holds something that cannot be copied.
    """

    def __init__(self, model: nn.Module, *, precision: Precision = "fp32", is_compiled: bool = False) -> None:
        super().__init__()
        self.is_fast = precision == "fast"
        try:
            network = deepcopy(model)
        except Exception as error:  # modules of other packages may raise anything
            raise EvaluationError(
                f"the network cannot be copied for the search ({type(error).__name__}: {error}); evaluate it with "
                "engine: reference"
            ) from error
        is_on_cpu = all(values.device.type == "cpu" for values in (*network.parameters(), *network.buffers()))
        if is_compiled or not is_on_cpu or _convolutions(network) > _FEW_CONVOLUTIONS:
            self._format = torch.channels_last
            to_channels_last(network)
        else:
            self._format = torch.contiguous_format
        if self.is_fast:
            # Once instead of in every pass: autocast caches casts of trained weights only.
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        elif not is_compiled and is_on_cpu:
            simplify_norms(network)
        if self._format == torch.contiguous_format:
            ease_image_gradients(network)
        self.network = network
        self.train(model.training)
        self._wants_program = is_compiled
        self._program: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        # The compiler would compile a batch of one separately.
        is_single = self._wants_program and len(x) == 1
        batch = (x.expand(2, -1, -1, -1) if is_single else x).contiguous(memory_format=self._format)
        with autocast("bf16" if self.is_fast else "fp32", x.device.type):
            if self._wants_program and self._program is None:
                self._compile(batch)
            logits: Tensor = self.network(batch) if self._program is None else self._program(batch)
        return logits[: len(x)].float()

    def _compile(self, batch: Tensor) -> None:
        """Compile both passes with a first batch, where the search can still fall back."""
        program: Callable[[Tensor], Tensor] = torch.compile(self.network.forward, dynamic=True)
        probe = batch.detach().clone(memory_format=torch.channels_last)
        try:
            with torch.enable_grad():
                torch.autograd.grad(program(probe.requires_grad_()).sum(), probe)
            with torch.no_grad():
                program(probe.detach())
        except Exception as error:  # compilers may raise anything
            self._wants_program = False
            warnings.warn(
                f"the search continues without torch.compile, which failed ({in_one_line(error)})", stacklevel=2
            )
            return
        self._program = program


def _convolutions(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in network.modules())
