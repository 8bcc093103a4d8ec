"""Batch norms with statistics of a whole batch that is split over processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustcli.runtime import ranks


@contextmanager
def synchronized_batch_norm(is_on: bool) -> Iterator[None]:
    """Synchronize every batch norm with batch statistics over all processes, inside the context.

    torch's own SyncBatchNorm works only on GPUs, replaces modules, and cannot be differentiated twice.
    """
    if is_on and ranks.world() > 1:
        with _Synchronized():
            yield
    else:
        yield


class _Synchronized(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm over the slices of all processes."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    axes = [axis for axis in range(x.dim()) if axis != 1]
    count, mean, variance = _pooled(x, axes)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
            running_var.lerp_((variance.detach() * (count / (count - 1))).to(running_var.dtype), momentum)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    out = (x - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(input.dtype)


def _pooled(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return number of values, mean and variance of each channel over all processes."""
    variance, mean = torch.var_mean(x, axes, correction=0)
    own = torch.cat([mean, variance, mean.new_full((1,), x.numel() / x.shape[1])])
    # Each process fills its row of a table of zeros; the sum over the processes is the whole table.
    is_own = torch.arange(ranks.world(), device=x.device) == ranks.rank()
    table = _Total.apply(is_own[:, None].to(own.dtype) * own)
    means, variances, counts = table.split([len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    pooled = (shares * means).sum(0)
    return counts.sum(), pooled, (shares * (variances + (means - pooled).square())).sum(0)


class _Total(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of their gradients, and can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        found = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Total.apply(gradients[0])
