"""Calls of a network through torch.compile, with a fallback to uncompiled calls."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustcli.errors import in_one_line

Note = Callable[[str], None]
"""Writes a note into the record of a run."""


def ignore(note: str) -> None:
    """Ignore a note, for callers without a record."""


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    # The network is an argument, so that copies of a model use the same programs with their own network.
    logits: Tensor = network(x)
    return logits


class CompiledCalls:
    """Call a network through programs of torch.compile, one for each kind of pass.

    Kinds differ in the mode of the network and in the tensors that need gradients. PGD-AT has two: gradients of the
    images in eval mode with fixed weights, and gradients of the weights in train mode. Programs are compiled for whole
    batches and multiples of them; other numbers of rows, such as the last batch of an epoch, run uncompiled. Code of
    attacks between two passes is not compiled, because it takes less than 0.2 % of a pass.

    On a GPU a program is replayed as a CUDA graph. The next replay overwrites its memory, so inputs and outputs are
    copied. A new kind is tried before its first use, forward and backward, because a failure in the middle of a real
    backward pass could not be handled. After a failure, with a warning, all calls run uncompiled. A CUDA graph is
    captured in the second call and replayed in the third, so on a GPU three calls are tried.

    Args:
        batch_size: rows of the batches to compile for.
        note: receives a note if compilation fails.
    """

    def __init__(self, batch_size: int, device: torch.device, note: Note = ignore) -> None:
        self.batch_size = batch_size
        self.is_graphed = device.type == "cuda"
        self._note = note
        self._tried: set[object] = set()
        self._program: Callable[[nn.Module, Tensor], Tensor] | None = torch.compile(
            _logits, dynamic=False, mode="reduce-overhead" if self.is_graphed else None
        )

    def __deepcopy__(self, memo: object) -> "CompiledCalls":
        # Copies of a model share the programs, which take the network as an argument.
        return self

    def __call__(self, network: nn.Module, x: Tensor) -> Tensor:
        if self._program is None or len(x) % self.batch_size:
            return _logits(network, x)
        kind = _kind(network, x)
        if kind not in self._tried:
            self._try(network, x)
            self._tried.add(kind)
        return self._call(network, x)

    def _call(self, network: nn.Module, x: Tensor) -> Tensor:
        if self._program is None:
            return _logits(network, x)
        if self.is_graphed:
            # Multiply by one, so that the gradient of the images is a copy too.
            return self._program(network, x * 1).clone()
        return self._program(network, x)

    def _try(self, network: nn.Module, x: Tensor) -> None:
        """Compile the programs of a new kind, without changes of buffers and random states."""
        probe = x.detach().requires_grad_(x.requires_grad)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        wanted = ([probe] if x.requires_grad else []) + trained
        try:
            with _unmoved(network, x.device):
                for _ in range(3 if self.is_graphed else 1):
                    logits = self._call(network, probe)
                    if logits.requires_grad:
                        torch.autograd.grad(logits.sum(), wanted, allow_unused=True)
        except Exception as error:  # torch.compile and its backends raise many kinds of errors
            self._program = None
            if self.is_graphed:
                # Graphs keep memory of their own, which uncompiled calls may need.
                torch.compiler.reset()
            text = f"training continues without torch.compile, which failed ({in_one_line(error)})"
            warnings.warn(text, stacklevel=2)
            self._note(text)


def _kind(network: nn.Module, x: Tensor) -> object:
    """Return the properties of a call that determine its program."""
    modes = tuple((module.training, getattr(module, "track_running_stats", None)) for module in network.modules())
    is_trained = any(parameter.requires_grad for parameter in network.parameters())
    return len(x), modes, is_trained, x.requires_grad, torch.is_grad_enabled()


@contextmanager
def _unmoved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers and random states at the end of the context."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                # Write only changed buffers: a pending backward pass may need the others unmodified.
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
