"""A GPU for tests on machines without one: values are computed on the CPU, rules are those of CUDA.

`with simulated_gpu() as gpu:` makes `cuda` available in this thread. Inside it, operations on tensors of two devices
and generators of the wrong device raise what CUDA raises, and everything that makes the host wait for the device is
counted in `gpu.waits` by reason and line.

How it works: a `GpuTensor` is a wrapper around a CPU tensor. To C++ it is a tensor on the meta device, so autograd asks
for no CUDA context; to Python it is on cuda:0. Two modes see all calls: one for functions of Python, which rewrites
device arguments, and one for kernels, which checks devices and computes.

Not simulated: speed, running out of memory (unless `free` is given), streams, CUDA graphs and compilation.
"""

import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
_HOST, _META = torch.device("cpu"), torch.device("meta")

# Kernels for whose result, or its size, the host waits.
_ASKING = {"nonzero", "masked_select", "equal", "is_nonzero", "bincount", "histc", "_local_scalar_dense"}
_ASKING |= {"_unique2", "unique_dim", "unique_consecutive"}
# Kernels that take a number of the CPU (a tensor without dimensions) besides all pointwise ones.
_WITH_NUMBERS = {"where", "lerp", "lerp_", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
_WITH_NUMBERS |= {"index_put", "index_put_", "_index_put_impl_"}
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_PRODUCTS = (F.linear, F.bilinear, F.scaled_dot_product_attention, torch.einsum, torch.addmm, torch.baddbmm)
_MATMULS = (torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm)
_LOWERED_BY_AUTOCAST = frozenset((*_CONVOLUTIONS, *_PRODUCTS, *_MATMULS))


@dataclass
class SimulatedGpu:
    """Records what happened on the device.

    Args:
        waits: number of times the host waited, by (line of the package, reason).
        kernels: number of kernels by name.
        forbids_waits: whether waiting is an error.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    forbids_waits: bool = False

    def wait(self, reason: str) -> None:
        """Record that the host waits; an error after `torch.cuda.set_sync_debug_mode("error")`."""
        self.waits[_calling_line(), reason] += 1
        if self.forbids_waits:
            raise RuntimeError(f"called a synchronizing CUDA operation ({reason} at {_calling_line()})")

    def waits_in(self, *parts: str) -> dict[tuple[str, str], int]:
        """Waits in files whose path contains one of the parts."""
        return {key: count for key, count in self.waits.items() if any(part in key[0] for part in parts)}


_current: list[SimulatedGpu] = []
# Device of the thread's torch.load; rebuilt tensors do not know it.
_loading = threading.local()


def _calling_line() -> str:
    """The innermost line of the package on the stack, such as "robustcli/attacks/pgd.py:30"."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/robustcli/" in path and "site-packages" not in path:
            return f"robustcli/{path.rpartition('/robustcli/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the package"


class GpuTensor(torch.Tensor):
    """Tensor on the simulated device."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "GpuTensor":
        shape = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), dtype=host.dtype, device=_META, requires_grad=False, **shape
        )
        made.host = host.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        assert isinstance(other, GpuTensor), "weights on the GPU are replaced by weights of the CPU"
        torch.Tensor.data.__set__(self, other)
        self.host = other.host

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.host!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.host,)


def _rebuild(host: torch.Tensor) -> torch.Tensor:
    """Tensor of a file, on the device it was saved from unless map_location is given."""
    target = getattr(_loading, "target", None)
    return host if target is not None and torch.device(target).type == "cpu" else GpuTensor(host)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check and count one kernel, and compute it on the CPU."""
    gpu = _current[-1]
    name = func._schema.name.partition("::")[2]
    flat, _ = tree_flatten((args, kwargs))
    on_gpu = [item for item in flat if isinstance(item, GpuTensor)]
    on_host = [item for item in flat if isinstance(item, torch.Tensor) and not isinstance(item, GpuTensor)]
    asked = kwargs.get("device")
    result_on_gpu = bool(on_gpu) if asked is None else torch.device(asked).type != "cpu"
    if on_gpu or result_on_gpu:
        gpu.kernels[name] += 1
    if name in ("copy_", "_to_copy"):
        _count_copy(gpu, name, args, kwargs, result_on_gpu)
    elif on_gpu and name != "lift_fresh":
        _require_one_device(gpu, func, name, args, on_host)
        if name in _ASKING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            gpu.wait(name)
    plain_args, plain_kwargs = tree_map(lambda item: item.host if isinstance(item, GpuTensor) else item, (args, kwargs))
    if asked is not None:
        plain_kwargs["device"] = _HOST
    with torch._C._DisableTorchDispatch(), torch.no_grad():
        result = func(*plain_args, **plain_kwargs)
    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])  # In place: return the same tensor.
    if not result_on_gpu:
        return result
    return tree_map(lambda item: GpuTensor(item) if isinstance(item, torch.Tensor) else item, result)


def _count_copy(gpu: SimulatedGpu, name: str, args: Any, kwargs: dict[str, Any], result_on_gpu: bool) -> None:
    source, to_gpu = (args[1], isinstance(args[0], GpuTensor)) if name == "copy_" else (args[0], result_on_gpu)
    from_gpu = isinstance(source, GpuTensor)
    if from_gpu == to_gpu:
        return
    is_async = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
    if from_gpu:
        gpu.wait("copy to the CPU")
    elif not (is_async and getattr(source, "is_pinned_here", False)):
        gpu.wait("copy to the GPU that is not asynchronous from pinned memory")


def _require_one_device(gpu: SimulatedGpu, func: Any, name: str, args: Any, on_host: list[torch.Tensor]) -> None:
    """Refuse tensors of the CPU, except numbers where CUDA takes them and indices, which it copies."""
    indices = args[1] if name.startswith(("index", "_index", "_unsafe_index")) and len(args) > 1 else ()
    indices = [item for item in indices if isinstance(item, torch.Tensor)] if isinstance(indices, list | tuple) else []
    takes_numbers = torch.Tag.pointwise in func.tags or name in _WITH_NUMBERS or name.startswith("_foreach")
    for tensor in on_host:
        if any(tensor is index for index in indices):
            gpu.wait(f"{name} by indices on the CPU")
        elif tensor.dim() or not takes_numbers or (func._schema.is_mutable and tensor is args[0]):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name}, shape {tuple(tensor.shape)} on the CPU, at {_calling_line()})"
            )
    fills = "put" in name and isinstance(args[2], torch.Tensor) and args[2].numel() == 1
    if not fills and any(index.dtype == torch.bool for index in indices):
        gpu.wait(f"{name} by a mask")


class _Kernels(TorchDispatchMode):
    """Kernels that have no tensor of the GPU among their arguments, such as those that create one."""

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _to_cpp(value: Any) -> Any:
    """A device argument for C++."""
    if isinstance(value, str | torch.device) and str(value).partition(":")[0] == "cuda":
        return _META
    return value


class _Functions(TorchFunctionMode):
    """Functions of Python: device arguments, generators and autocast."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, type):
            return func(*args, **kwargs)
        self._require_generator(args, kwargs)
        gpu = _current[-1]
        if func in (torch.tensor, torch.as_tensor) and _to_cpp(kwargs.get("device")) is _META:
            gpu.wait("numbers of Python copied to the GPU")
            return GpuTensor(func(*args, **{**kwargs, "device": _HOST}))
        if func is torch.Tensor.tolist and isinstance(args[0], GpuTensor):
            gpu.wait("tolist")
            return args[0].host.tolist()
        if func is torch.Tensor.cuda:
            return args[0].to(_META)
        args = tuple(_to_cpp(item) for item in args)
        kwargs = {key: _to_cpp(item) for key, item in kwargs.items()}
        if func in _LOWERED_BY_AUTOCAST and torch.is_autocast_enabled("cuda"):
            args, kwargs = tree_map(_lowered, (args, kwargs))
        return func(*args, **kwargs)

    @staticmethod
    def _require_generator(args: Any, kwargs: dict[str, Any]) -> None:
        generator = kwargs.get("generator")
        if generator is None:
            return
        subject = args[0].device if args and isinstance(args[0], torch.Tensor) else _HOST
        expected = torch.device(kwargs.get("device") or subject).type
        found = getattr(generator, "where", _HOST).type
        if found != expected:
            raise RuntimeError(f"Expected a '{expected}' device type for generator but found '{found}'")


def _lowered(item: Any) -> Any:
    if isinstance(item, GpuTensor) and item.dtype == torch.float32:
        return item.to(torch.get_autocast_dtype("cuda"))
    return item


class _Generator(torch.Generator):
    """Generator that knows its device; its numbers are those of the CPU's."""

    where: torch.device

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls, device="cpu")
        made.where = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where


def _pinned(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    if isinstance(tensor, GpuTensor):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    copy = tensor.clone()
    copy.is_pinned_here = True  # type: ignore[attr-defined]
    return copy


def _answers(gpu: SimulatedGpu, count: int, total: int, free: Callable[[], int]) -> dict[str, Callable[..., Any]]:
    """Functions of torch.cuda that ask for the device."""
    fixed: dict[str, Any] = {
        "is_available": True,
        "device_count": count,
        "current_device": 0,
        "is_bf16_supported": True,
        "get_device_name": "simulated GPU",
        "get_device_capability": (9, 0),
        "get_device_properties": types.SimpleNamespace(total_memory=total, name="simulated GPU", major=9, minor=0),
        "max_memory_allocated": 2**30,
        "memory_allocated": 0,
        "memory_reserved": 0,
    }
    found: dict[str, Callable[..., Any]] = {name: lambda *_, value=value, **__: value for name, value in fixed.items()}
    for name in (
        "reset_peak_memory_stats",
        "empty_cache",
        "manual_seed",
        "manual_seed_all",
        "_lazy_init",
        "set_device",
    ):
        found[name] = lambda *_, **__: None
    found["_exchange_device"] = found["_maybe_exchange_device"] = lambda *_: 0
    found["mem_get_info"] = lambda *_: (free(), total)
    found["synchronize"] = lambda *_: gpu.wait("synchronize")
    found["set_sync_debug_mode"] = lambda mode: setattr(gpu, "forbids_waits", mode == "error")
    found["get_rng_state"] = lambda *_: torch.get_rng_state()
    found["set_rng_state"] = lambda state, *_: torch.set_rng_state(state)
    return found


@contextmanager
def simulated_gpu(
    count: int = 1, total: int = 24 * 2**30, free: Callable[[], int] | None = None
) -> Iterator[SimulatedGpu]:
    """Make `cuda` available in this thread.

    Args:
        count: number of GPUs; only the first one has tensors.
        total: bytes of memory of each.
        free: function that returns the bytes of free memory; default: all memory is free.
    """
    gpu = SimulatedGpu()
    load = torch.load
    # `torch.optim` has an attribute of the same name as this module.
    optimizer = sys.modules["torch.optim.optimizer"]

    def load_here(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        _loading.target = map_location
        # C++ has no cuda here; tensors are moved when they are rebuilt.
        return load(*args, map_location=None if _to_cpp(map_location) is _META else map_location, **kwargs)

    replaced: list[tuple[Any, str, Any]] = [
        (torch, "Generator", _Generator),
        (torch, "load", load_here),
        # Not a mode, since modes hold for one thread and images are read in others.
        (torch.Tensor, "pin_memory", _pinned),
        (torch.accelerator, "current_stream", lambda *_: types.SimpleNamespace(is_capturing=lambda: False)),
        (optimizer, "_foreach_supported_types", [torch.Tensor, torch.nn.Parameter, GpuTensor]),
        *((torch.cuda, name, answer) for name, answer in _answers(gpu, count, total, free or (lambda: total)).items()),
    ]
    with ExitStack() as stack:
        _current.append(gpu)
        stack.callback(_current.pop)
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(torch.serialization.safe_globals([_rebuild]))
        stack.enter_context(_Kernels())
        stack.enter_context(_Functions())
        yield gpu
