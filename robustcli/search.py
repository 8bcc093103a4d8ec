"""What attacks search with: a copy of the network that is made for speed.

The copy proposes only. What it finds is judged by the network itself in single precision, so haste can miss
adversarial images and never invents one.
"""

from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.errors import EvaluationError

Precision = Literal["fp32", "fast"]


class SearchNetwork(nn.Module):
    """A copy in channels_last, and on request in bf16; logits are float32.

    Args:
        model: in eval mode, its weights held; left alone.
        precision: "fp32", or "fast" for convolutions and products of matrices in bf16.

    Raises:
        EvaluationError: the model holds something that cannot be copied.
    """

    def __init__(self, model: nn.Module, *, precision: Precision = "fp32") -> None:
        super().__init__()
        self.is_fast = precision == "fast"
        try:
            network = deepcopy(model).to(memory_format=torch.channels_last)
        except Exception as error:  # whatever a module from elsewhere holds that cannot be copied
            raise EvaluationError(
                f"the network cannot be copied for the search ({type(error).__name__}: {error}); evaluate it with "
                "engine: reference"
            ) from error
        if self.is_fast:
            # Once, not in every pass: autocast remembers casts of trained weights only.
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        self.network = network
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.is_fast):
            logits: Tensor = self.network(x)
        return logits.float()
