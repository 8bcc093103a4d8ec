"""The network as training calls it, and its parameter groups."""

from typing import Any

import torch
from torch import Tensor, nn

from robustcli.errors import RobustCliError
from robustcli.registry.types import Precision
from robustcli.runtime.compiled import CompiledCalls, Note, ignore
from robustcli.runtime.held_casts import CastsWeights
from robustcli.runtime.precision import TYPES, autocast, call_scaled, native_precision
from robustcli.runtime.ranks import Slice
from robustcli.specs.settings import TrainSettings


class TrainingModel(CastsWeights):
    """The network as training calls it: passes in the precision of the spec, logits always in fp32.

    Args:
        network: network; shared, only the call changes.
        note: receives notes for the record of the run.
    """

    def __init__(self, network: nn.Module, settings: TrainSettings, device: torch.device, note: Note = ignore) -> None:
        super().__init__()
        self.network = network
        is_compiled = settings.compile is True
        self._call = CompiledCalls(len(Slice.of(settings.batch_size)), device, note) if is_compiled else None
        is_last = is_channels_last(network, settings, device)
        self._format = torch.channels_last if is_last else torch.contiguous_format
        self._precision = precision_of(settings, device)

    @property
    def cast_to(self) -> torch.dtype | None:
        # Compiled programs include the cast.
        return None if self._precision == "fp32" or self._call is not None else TYPES[self._precision]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self._format)
        if self._precision == "fp16":
            return call_scaled(self.network, x)
        with autocast(self._precision, x.device.type):
            logits: Tensor = self.network(x) if self._call is None else self._call(self.network, x)
        return logits.float()


def precision_of(settings: TrainSettings, device: torch.device) -> Precision:
    """Return the precision of passes; `auto` is resolved for a whole spec in `choices`, and here for a device."""
    return native_precision(device) if settings.precision == "auto" else settings.precision


def is_channels_last(network: nn.Module, settings: TrainSettings, device: torch.device) -> bool:
    """Return whether to use channels_last: as set, or by the rule of "auto".

    On x86 CPUs networks with batch norms were 1.1 to 1.4 times as fast with AVX-512, and 1.0 to 1.35 times with AVX2,
    most for narrow ones; plain convolutions without norms were slightly slower, and ConvNeXt hardly changed.
    """
    is_broken = breaks_in_channels_last(network, device)
    if settings.channels_last != "auto":
        if settings.channels_last and is_broken and precision_of(settings, device) == "fp32":
            raise RobustCliError(
                "train.channels_last: true: with AVX2 oneDNN writes beyond the weights of strided 1 x 1 convolutions "
                "whose channels are not a multiple of 8, which this network has; write auto or false"
            )
        return settings.channels_last
    if device.type == "cpu":
        suits = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and not is_broken
    else:
        # Tensor cores use this order for 16 bits; fp32 would be converted back and forth.
        suits = precision_of(settings, device) != "fp32"
    return suits and any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def breaks_in_channels_last(network: nn.Module, device: torch.device) -> bool:
    """Return True if oneDNN would write beyond the gradient of a weight in channels_last, which happens with AVX2.

    This concerns strided 1 x 1 convolutions of 3 or 4 channels, because its kernel uses blocks of 8 (torch 2.14).
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    return any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels % 8 != 0
        for module in network.modules()
    )


def parameter_groups(network: nn.Module, weight_decay: float, exclude: str) -> list[dict[str, Any]]:
    """Return parameters with and without weight decay.

    Args:
        exclude: "none"; "bn": weights and biases of normalization layers; "bn_and_bias": also all biases;
            "vectors": also everything else along a single axis, and learned positions.
    """
    spared = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = _is_norm(module)
            is_bias = exclude == "bn_and_bias" and name == "bias"
            if exclude != "none" and (is_norm or is_bias or (exclude == "vectors" and _is_vector(name, parameter))):
                spared.add(parameter)
    groups = [
        {"params": [p for p in network.parameters() if p not in spared], "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalization layer, of torch or by its name, such as RmsNorm of timm."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(module, norms) or type(module).__name__.rstrip("123d").lower().endswith("norm")


def _is_vector(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter has at most one axis, such as biases, scales and class tokens; or is a position.

    Axes of length 1 do not count, so attention temperatures (heads, 1, 1) are vectors too. Names of positions within a
    module are pos_embed here and pos_embedding in torchvision.
    """
    return parameter.numel() == max(parameter.shape, default=1) or name.startswith("pos_embed")
