"""Several processes, started by torchrun, that train one network as one process would.

Every process has all weights and takes its slice of each batch. Its loss is the mean over the slice, so `weighed` and a
mean over the processes give the loss of the batch. Likewise, every gradient of the weights passes through `mean` before
it is used. Every process draws noise for the whole batch (see threat/noise.py). Attacks need no communication. All
other state between updates is equal in all processes, so that the first one can save it for all.

With one process every function here returns its argument.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.errors import Interrupted, RobustCliError, shortened

T = TypeVar("T")
SomeTensor = TypeVar("SomeTensor", bound=Tensor | None)

Share = tuple[int, int]
"""(i, n): the i-th of n shares, from 0."""

_NUMBER = re.compile("[0-9]{1,9}")


def share_of_torchrun() -> Share | None:
    """Return the share of this process among those that torchrun started; None if there is only one.

    Raises:
        RobustCliError: RANK or WORLD_SIZE is not a number.
    """
    names = ("RANK", "WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return None
    texts = [os.environ[name].strip() for name in names]
    if not all(texts):
        # Empty counts as not set.
        return None
    if not all(_NUMBER.fullmatch(text) for text in texts) or int(texts[0]) >= int(texts[1]):
        raise RobustCliError(
            f"RANK={shortened(texts[0])} WORLD_SIZE={shortened(texts[1])}: expected numbers as torchrun sets them, "
            "RANK below WORLD_SIZE; unset both for one process"
        )
    rank, world = (int(text) for text in texts)
    return (rank, world) if world > 1 else None


def local_rank(default: int) -> int:
    """Return the number of this process on its machine, from 0; `default` if torchrun did not set it."""
    return _local("LOCAL_RANK", default)


def _local(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if _NUMBER.fullmatch(text) else default


def is_restarted() -> bool:
    """Return True if torchrun restarted the processes after one of them had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def own_device(device: str) -> str:
    """Return the device of this process: its own GPU if `device` is auto or cuda.

    Raises:
        RobustCliError: the machine has fewer GPUs than processes, or the spec names one GPU for all.
    """
    gpus = torch.cuda.device_count()
    if share_of_torchrun() is None or device == "cpu" or not gpus:
        return device
    local, count = local_rank(0), _local("LOCAL_WORLD_SIZE", 1)
    if device not in ("auto", "cuda"):
        raise RobustCliError(f"train.device: {device}: every process needs a GPU of its own; write auto or cuda")
    if count > gpus:
        raise RobustCliError(
            f"{count} processes on a machine with {gpus} GPUs; start {gpus}, or write train.device: cpu"
        )
    return f"cuda:{local}"


def world() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return True in the process that writes and prints for all."""
    return rank() == 0


def wait() -> None:
    """Wait for all processes; signals are handled meanwhile."""
    if world() == 1:
        return
    here = dist.all_reduce(torch.zeros(1), async_op=True)
    assert here is not None
    pause = 0.0005
    while not here.is_completed():
        pause = min(2 * pause, 0.1)
        time.sleep(pause)
    here.wait()


def from_first(make: Callable[[], T]) -> T:
    """Call a function in the first process, and return its result or raise its error in all."""
    if world() == 1:
        return make()
    made: list[Any] = [None, None]
    if is_first():
        try:
            made[0] = make()
        except (RobustCliError, OSError, Interrupted) as error:
            made[1] = error
    wait()
    failure = made[1]
    if isinstance(failure, RobustCliError):
        # Errors with custom arguments cannot be sent.
        made[1] = next(kind for kind in type(failure).__mro__ if "__init__" not in vars(kind))(str(failure))
    dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    if failure or made[1]:
        raise failure or made[1]
    value: T = made[0]
    return value


def is_same_everywhere(value: str) -> bool:
    """Return True in all processes if they all give the same value."""
    first = from_first(lambda: value)
    return not any_of(value != first)


def any_of(is_so: bool) -> bool:
    """Return True in all processes if the condition holds in any of them; does not wait for a GPU."""
    if world() == 1:
        return is_so
    found = torch.tensor(float(is_so))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


@dataclass(frozen=True)
class Slice:
    """Slice of a batch for one process.

    Args:
        start, stop: index of the first image, and of the one after the last.
        total: number of images in the batch.
        unit: images that are not separated.
    """

    start: int
    stop: int
    total: int
    unit: int = 1

    @classmethod
    def of(cls, total: int, unit: int = 1, number: int | None = None) -> "Slice":
        """Return the slice of a process; sizes differ by at most one unit, and the first slices are the larger ones.

        Args:
            number: number of the process; None is this one.
        """
        number = rank() if number is None else number
        each, over = divmod(-(-total // unit), world())
        start, stop = (unit * (each * n + min(n, over)) for n in (number, number + 1))
        return cls(min(start, total), min(stop, total), total, unit)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def weight(self) -> float:
        """Weight of the mean over the slice in the mean over the processes; 1 if all slices are equal."""
        return world() * len(self) / self.total


# Current slice; None outside of an update, and with one process.
_current: Slice | None = None


@contextmanager
def taking(part: Slice) -> Iterator[None]:
    """Set the current slice inside the context."""
    global _current
    _current = part if world() > 1 else None
    try:
        yield
    finally:
        _current = None


def images(count: int) -> int:
    """Return the number of images in the batch, given the number in this process."""
    return count if _current is None else _current.total


def own(rows: Tensor) -> Tensor:
    """Return the rows of a batch that belong to the slice."""
    return rows if _current is None else rows[_current.start : _current.stop]


def whole_shape(like: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole batch, given a slice; without slices, the given shape."""
    is_slice = _current is not None and like.dim() > 0 and len(like) == len(_current)
    return (images(len(like)), *like.shape[1:]) if is_slice else tuple(like.shape)


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of the whole batch, given those of the slice."""
    if _current is None:
        return rows
    sizes = [len(Slice.of(_current.total, _current.unit, number)) for number in range(world())]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])


def weighed(loss: Tensor) -> Tensor:
    """Return the mean loss of the slice, weighted so that its mean over the processes is the loss of the batch."""
    return loss if _current is None or _current.weight == 1 else _current.weight * loss


def usual(count: Tensor) -> Tensor:
    """Return the mean number per process of images of a kind, at least 1, given the number in this process."""
    if _current is None:
        return count.clamp_min(1)
    return total(count).clamp_min(1) * (len(_current) / _current.total)


def total(values: Tensor) -> Tensor:
    """Return the sum over the processes."""
    if world() == 1:
        return values
    found = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found)
    return found


def mean(tensors: Sequence[SomeTensor]) -> list[SomeTensor]:
    """Return the mean of every tensor over the processes; None stays None."""
    found: list[Any] = list(tensors)
    if world() == 1:
        return found
    kinds: dict[torch.dtype, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if tensor is not None:
            kinds.setdefault(tensor.dtype, []).append(number)
    for numbers in kinds.values():
        # As one tensor, because many small messages would be much slower.
        parts: list[Any] = [tensors[number] for number in numbers]
        flat = torch.cat([part.detach().flatten() for part in parts])
        dist.all_reduce(flat)
        means = torch.split(flat / world(), [part.numel() for part in parts])
        for number, part, found_mean in zip(numbers, parts, means, strict=True):
            found[number] = found_mean.view_as(part)
    return found


def metrics(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return means over the batch, given means over the slice."""
    if world() == 1:
        return dict(found)
    values = mean([weighed(value.detach().double()) for value in found.values()])
    return {name: value.to(found[name].dtype) for name, value in zip(found, values, strict=True)}


def mean_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Replace the gradients of an optimizer by their means over the processes."""
    if world() == 1:
        return
    trained = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    for weight, gradient in zip(trained, mean([weight.grad for weight in trained]), strict=True):
        weight.grad.copy_(gradient)


def mean_statistics(network: nn.Module) -> None:
    """Replace running statistics of a network by their means over the processes."""
    if world() == 1:
        return
    running = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    for buffer, found in zip(running, mean(running), strict=True):
        buffer.copy_(found)
