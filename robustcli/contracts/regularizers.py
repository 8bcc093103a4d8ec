"""Contract of every regularizer."""

import torch
from torch import Tensor, nn

from robustcli.contracts.defenses import through_a_file
from robustcli.contracts.model_state import changes, found_again, snapshot
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import Regularizer, RunningRegularizer, add_penalty
from robustcli.optimization.regularizers.none import Unregularized

_STEPS_PER_EPOCH = 4


def _update(model: nn.Module, running: RunningRegularizer, update: int) -> None:
    """Apply a regularizer in an update with gradient descent and no other loss."""
    model.zero_grad()
    progress = Progress(update, _STEPS_PER_EPOCH, epochs=10)
    add_penalty(running, model, images(8, seed=update), labels(8, seed=update), progress)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    running.after(model, progress)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def does_something(regularizer: Regularizer) -> None:
    """Every member but `none` changes the weights."""
    if isinstance(regularizer, Unregularized):
        return
    model = conv_net(dropout=0.1).train()
    before = _weights(model)
    running = regularizer.start(model)
    for update in range(200):
        _update(model, running, update)
        if not torch.equal(_weights(model), before):
            return
    raise AssertionError("nothing happened to the weights in 200 updates")


def changes_only_gradients(regularizer: Regularizer) -> None:
    """Computing the penalty changes only gradients, and no weight, buffer, mode or generator."""
    model = conv_net(dropout=0.1).train()
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    held = next(model.parameters()).requires_grad_(False)
    state = torch.get_rng_state()
    x, y = images(8), labels(8)
    given = x.clone()
    with found_again(model):
        running = regularizer.start(model)
    with found_again(model, except_for=("grad",)):
        add_penalty(running, model, x, y, Progress(0, _STEPS_PER_EPOCH, 10))
    assert torch.equal(torch.get_rng_state(), state), "moved the global generator"
    assert held.grad is None
    assert x.grad is None
    assert torch.equal(x, given)


def leaves_frozen_weights(regularizer: Regularizer) -> None:
    """Frozen weights do not move, neither by a gradient nor by a projection."""
    model = conv_net().train().requires_grad_(False)
    running = regularizer.start(model)
    before = snapshot(model)
    for update in range(200):
        _update(model, running, update)
    assert not [name for name in changes(before, snapshot(model)) if name.startswith(("weight", "buffer"))]


def is_finite_and_scalar(regularizer: Regularizer) -> None:
    model = conv_net().train()
    penalty = regularizer.start(model).penalty(model, images(8), labels(8), Progress(0, _STEPS_PER_EPOCH, 10))
    if penalty is not None:
        assert penalty.shape == ()
        assert torch.isfinite(penalty)


def treats_class_shares_as_labels(regularizer: Regularizer) -> None:
    found = []
    x, y = images(8, dtype=torch.float64), labels(8)
    for targets in (y, nn.functional.one_hot(y, 10).double()):
        model = conv_net(dtype=torch.float64).train()
        running = regularizer.start(model)
        add_penalty(running, model, x, targets, Progress(0, _STEPS_PER_EPOCH, 10))
        found += [[parameter.grad for parameter in model.parameters()]]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.allclose(one, other, rtol=0, atol=1e-12)


def continues_from_its_state(regularizer: Regularizer) -> None:
    """Saving in the middle of an epoch and loading into a new regularizer gives the same result."""
    straight = conv_net().train()
    running = regularizer.start(straight)
    for update in range(6):
        if update == 3:
            state, weights = through_a_file(running.state_dict()), through_a_file(straight.state_dict())
        _update(straight, running, update)
    resumed = conv_net(seed=9).train()
    running = regularizer.start(resumed)
    resumed.load_state_dict(weights)
    running.load_state_dict(state)
    for update in range(3, 6):
        _update(resumed, running, update)
    assert torch.equal(_weights(resumed), _weights(straight))


def repeats_itself(regularizer: Regularizer) -> None:
    assert torch.equal(observed(regularizer), observed(regularizer))


def observed(regularizer: Regularizer) -> Tensor:
    """The weights after some updates, as one row of numbers."""
    model = conv_net().train()
    running = regularizer.start(model)
    for update in range(6):
        _update(model, running, update)
    return _weights(model)
