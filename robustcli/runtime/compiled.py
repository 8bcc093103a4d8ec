"""The network's passes as compiled programs, wherever that is possible, and as they are otherwise."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustcli.errors import in_one_line

Tell = Callable[[str], None]
"""Takes what a run's record should say."""


def tell_nobody(text: str) -> None:
    """For callers that keep no record; a warning is given all the same."""


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    # The network is an argument, so that a copy of a model calls its own and finds the same programs.
    logits: Tensor = network(x)
    return logits


class CompiledCalls:
    """Calls a network by programs that torch.compile makes, one per kind of pass.

    Kinds differ in the mode of the network and in what wants a gradient: in PGD-AT a gradient of the images at held
    weights in eval mode, and a gradient of the weights in train mode. Programs are made for whole batches and several
    of them in one; other numbers of rows, such as the last batch of an epoch, go through the network as it is. What
    attacks do between two passes is not compiled: it takes less than two thousandths of a pass.

    On a GPU a program is replayed as a CUDA graph, whose memory the next replay overwrites, so everything that goes
    in and out is copied. A kind is tried when it first occurs, forward and backward: there a failure can be mended,
    in the middle of a backward it cannot. If one fails, a warning says so and everything runs uncompiled.
    A graph is captured in the second call and replayed in the third, so there it is tried three times.

    Args:
        batch_size: rows that programs are made for.
        tell: also hears of a failure.
    """

    def __init__(self, batch_size: int, device: torch.device, tell: Tell = tell_nobody) -> None:
        self.batch_size = batch_size
        self.is_graphed = device.type == "cuda"
        self._tell = tell
        self._tried: set[object] = set()
        self._program: Callable[[nn.Module, Tensor], Tensor] | None = torch.compile(
            _logits, dynamic=False, mode="reduce-overhead" if self.is_graphed else None
        )

    def __deepcopy__(self, memo: object) -> "CompiledCalls":
        # Copies of a model call their own networks by the same programs.
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
            # Times one: what goes back to the images is a copy then, too.
            return self._program(network, x * 1).clone()
        return self._program(network, x)

    def _try(self, network: nn.Module, x: Tensor) -> None:
        """Make the programs of a kind; nothing is moved by it."""
        probe = x.detach().requires_grad_(x.requires_grad)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        wanted = ([probe] if x.requires_grad else []) + trained
        try:
            with _unmoved(network, x.device):
                for _ in range(3 if self.is_graphed else 1):
                    logits = self._call(network, probe)
                    if logits.requires_grad:
                        torch.autograd.grad(logits.sum(), wanted, allow_unused=True)
        except torch.OutOfMemoryError:
            # Too large a batch, which no other way of calling the network would mend.
            raise
        except Exception as error:  # whatever the compilers behind torch.compile stumble on
            self._program = None
            text = f"training goes on without torch.compile, which failed ({in_one_line(error)})"
            warnings.warn(text, stacklevel=2)
            self._tell(text)


def _kind(network: nn.Module, x: Tensor) -> object:
    """What makes another program necessary."""
    modes = tuple((module.training, getattr(module, "track_running_stats", None)) for module in network.modules())
    is_trained = any(parameter.requires_grad for parameter in network.parameters())
    return len(x), modes, is_trained, x.requires_grad, torch.is_grad_enabled()


@contextmanager
def _unmoved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers and random states are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                # Only what moved: a pass that waits for its backward may still need the others as they are.
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
