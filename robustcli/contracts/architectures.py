"""Contract of every architecture."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.channel_gates import with_probes
from robustcli.contracts.networks import drawn_from

Body = Callable[[ImageShape], nn.Module]
_COUNT = 4


def _body(build: Body, shape: ImageShape) -> nn.Module:
    with drawn_from(0):
        return build(shape)


def _pixels(shape: ImageShape) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand((_COUNT, shape.channels, shape.height, shape.width), generator=generator)


def gives_logits(build: Body, shape: ImageShape) -> None:
    """Logits are (n, k), finite, in train and in eval mode, and not probabilities; the images are not modified."""
    network, x = _body(build, shape), _pixels(shape)
    given = x.clone()
    for is_training in (True, False):
        with drawn_from(1), torch.no_grad():
            logits = network.train(is_training)(x)
        assert logits.shape == (len(x), shape.classes)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert not torch.allclose(logits.sum(1), torch.ones(len(x)), atol=1e-3), "probabilities?"
    assert torch.equal(x, given)


def treats_each_image_alone(build: Body, shape: ImageShape) -> None:
    """In eval mode the logits of an image do not depend on the other images."""
    network, x = _body(build, shape).eval(), _pixels(shape)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(image[None]) for image in x])
    assert torch.allclose(alone, together, rtol=1e-4, atol=1e-4 * float(together.abs().max()))


def every_parameter_learns(build: Body, shape: ImageShape) -> None:
    network, x = _body(build, shape).train(), _pixels(shape)
    with drawn_from(1):
        # Perturb the parameters first: gradients of parts that start as copies may cancel, and parameters multiplied by
        # a zero have none.
        for parameter in network.parameters():
            size = float(parameter.detach().abs().mean()) or 0.1
            parameter.data += 0.1 * torch.randn_like(parameter) * size
        logits, probes = with_probes(network, x)
        # Probes inside a network learn from their own losses.
        torch.stack([output.square().sum() for output in (logits, *probes)]).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, f"{name} has the gradient zero"


def is_drawn_from_the_seed(build: Body, shape: ImageShape) -> None:
    """Equal seeds give equal weights; a copy, loaded from a state, is the same function."""
    one, other = _body(build, shape), _body(build, shape)
    # state_dict() creates new objects in every call.
    state = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(state[name], value), name
    with drawn_from(5):
        copy = build(shape)
    copy.load_state_dict(deepcopy(one.state_dict()))
    with torch.no_grad():
        assert torch.equal(copy.eval()(_pixels(shape)), one.eval()(_pixels(shape)))
