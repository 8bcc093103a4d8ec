"""Contract of every weight perturbation."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustcli.contracts.model_state import Failing, PlannedError, changes, found_again, snapshot
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.optimization.progress import Progress
from robustcli.optimization.weights import WeightPerturbation
from robustcli.optimization.weights.none import Unperturbed

_PROGRESS = Progress(0, steps_per_epoch=4, epochs=10)


def _setting(model: nn.Module | None = None) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = conv_net().train() if model is None else model
    x, y = images(8, dtype=next(model.parameters()).dtype), labels(8)
    return model, lambda: cross_entropy(model(x), y)


def moves_the_weights(perturbation: WeightPerturbation) -> None:
    """Every member but `none` perturbs the weights."""
    if isinstance(perturbation, Unperturbed):
        return
    model, loss = _setting()
    before = snapshot(model)
    with perturbation.start(model).around(model, loss, _PROGRESS):
        assert any(name.startswith("weight") for name in changes(before, snapshot(model)))


def restores_the_weights(perturbation: WeightPerturbation) -> None:
    """Weights are restored bit for bit; gradients, buffers, modes and requires_grad do not change."""
    model, loss = _setting()
    next(model.parameters()).requires_grad_(False)
    for parameter in list(model.parameters())[1:3]:
        parameter.grad = torch.ones_like(parameter)
    for _ in range(5):
        with found_again(model), perturbation.start(model).around(model, loss, _PROGRESS):
            pass


def restores_the_weights_after_an_error(perturbation: WeightPerturbation) -> None:
    """Weights are restored after an error inside the context, or in the loss that the perturbation evaluates."""
    model, loss = _setting()
    with found_again(model), perturbation.start(model).around(model, loss, _PROGRESS):
        raise PlannedError
    model, loss = _setting(Failing(conv_net(), 1).train())
    with found_again(model), perturbation.start(model).around(model, loss, _PROGRESS):
        raise PlannedError


def keeps_what_an_update_did(perturbation: WeightPerturbation) -> None:
    """A change of the weights inside the context stays after v is removed."""
    model, loss = _setting(conv_net(dtype=torch.float64).train())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with perturbation.start(model).around(model, loss, _PROGRESS), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    for now, then in zip(model.parameters(), before, strict=True):
        assert torch.allclose(now, then + 0.25, rtol=0, atol=1e-12)


def updates_statistics_once(perturbation: WeightPerturbation) -> None:
    """Batch statistics are updated once, by the forward inside the context at the perturbed weights."""
    model, loss = _setting()
    before = snapshot(model)
    with perturbation.start(model).around(model, loss, _PROGRESS):
        assert not [name for name in changes(before, snapshot(model)) if name.startswith("buffer")]
        plain = deepcopy(model)
        loss()
    plain(images(8))
    for (name, now), (_, expected) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(now, expected), name


def repeats_itself(perturbation: WeightPerturbation) -> None:
    assert torch.equal(observed(perturbation), observed(perturbation))


def observed(perturbation: WeightPerturbation) -> Tensor:
    """The perturbed weights, as one row of numbers."""
    model, loss = _setting()
    with perturbation.start(model).around(model, loss, _PROGRESS):
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
