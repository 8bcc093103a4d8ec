"""Every failed allocation is recognized, also those that are plain RuntimeErrors, such as of cuBLAS."""

import pytest
import torch
from torch import Tensor, nn

from robustcli.architectures import Normalize
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import EvaluationError
from robustcli.evaluation.adaptive_batches import AdaptiveBatches
from robustcli.evaluation.gradient import gives_gradient
from robustcli.evaluation.preflight import _check_batches
from robustcli.models.external import ExternalNetwork
from robustcli.runtime.out_of_memory import is_out_of_memory

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    # Every thread has a handle of its own, so the first backward pass can raise this although the forward passes fit.
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


class Hungry(nn.Module):
    """A network that runs out of memory with a gradient, or above a number of images."""

    def __init__(self, error: Exception, most: int) -> None:
        super().__init__()
        self.inner, self.error, self.most = conv_net(), error, most
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if x.requires_grad or len(x) > self.most:
            raise self.error
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize("error", ERRORS)
def test_batches_are_halved(error: Exception) -> None:
    def work(part: slice, _size: int) -> int:
        if part.stop - part.start > 3:
            raise error
        return part.stop - part.start

    found = AdaptiveBatches(torch.device("cpu"))
    assert [*found.map(6, 8, work)] == [3, 3]
    assert found.least == 3


@pytest.mark.parametrize("error", ERRORS)
def test_a_network_does_not_lack_a_gradient_because_memory_ran_out(error: Exception) -> None:
    """Attacks by gradient would be left out, and the accuracy would be too high."""
    with pytest.raises(type(error)):
        gives_gradient(Hungry(error, 100), images(4))


@pytest.mark.parametrize("error", ERRORS)
def test_an_external_network_is_not_blamed(error: Exception) -> None:
    network = ExternalNetwork(Normalize((0.0,), (1.0,)), Hungry(error, 0))
    with pytest.raises(type(error)):
        network(images(4))
    with pytest.raises(EvaluationError, match="the network fails on a batch"):
        ExternalNetwork(Normalize((0.0,), (1.0,)), Hungry(RuntimeError("a shape"), 0))(images(4))


@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_that_does_not_fit_is_checked_in_part(error: Exception) -> None:
    network = Hungry(error, 40).eval()
    _check_batches(network, images(64))
    assert max(size for size in network.sizes if size <= network.most) == 32


def test_other_errors_are_none_of_memory() -> None:
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory")):
        assert not is_out_of_memory(error)
