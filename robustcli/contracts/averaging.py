"""Contract of every average of weights."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustcli.contracts.defenses import through_a_file
from robustcli.contracts.model_state import found_again
from robustcli.contracts.networks import conv_net, images
from robustcli.optimization.averaging import Averaging, RunningAverage
from robustcli.optimization.progress import Progress

_STEPS_PER_EPOCH = 3


def _train(model: nn.Module, running: RunningAverage, updates: range) -> None:
    """Change weights and batch statistics like training."""
    for update in updates:
        model.train()
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * update + number)
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            model(images(8, seed=update))
        running.update(model, Progress(update, _STEPS_PER_EPOCH, epochs=10))


def _clean() -> Iterator[Tensor]:
    yield images(8, seed=50)
    yield images(8, seed=51)


def _values(network: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in network.state_dict().values()]


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def never_touches_the_model(averaging: Averaging) -> None:
    model = conv_net().train()
    with found_again(model):
        running = averaging.start(model)
    _train(model, running, range(4))
    with found_again(model):
        running.update(model, Progress(4, _STEPS_PER_EPOCH, epochs=10))
        running.averaged(model, _clean)
        running.state_dict()
    with found_again(model):
        running.load_state_dict(through_a_file(running.state_dict()))


def shares_no_memory_with_the_model(averaging: Averaging) -> None:
    """An average shares no memory with the trained network, unless it is the trained network itself."""
    model = conv_net().train()
    running = averaging.start(model)
    _train(model, running, range(7))
    network = running.averaged(model, _clean)
    if network is model:
        return
    places = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        assert tensor.data_ptr() not in places, f"{name} is the trained network's own"
    before = _values(network)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert _equal(_values(network), before), "changes with the trained network without an update"


def is_not_changed_by_evaluating_it(averaging: Averaging) -> None:
    """Evaluating the average in between does not change the final average."""
    results = []
    for looks in (False, True):
        model = conv_net().train()
        running = averaging.start(model)
        for update in range(7):
            _train(model, running, range(update, update + 1))
            if looks:
                running.averaged(model, _clean)
        results.append(_values(running.averaged(model, _clean)))
    assert _equal(*results)


def keeps_constant_weights(averaging: Averaging) -> None:
    """The average of equal weights is those weights."""
    model = conv_net().train()
    running = averaging.start(model)
    for update in range(7):
        running.update(model, Progress(update, _STEPS_PER_EPOCH, epochs=10))
    for now, expected in zip(running.averaged(model, _clean).parameters(), model.parameters(), strict=True):
        assert torch.equal(now, expected)


def continues_from_its_state(averaging: Averaging) -> None:
    """Saving in the middle of an epoch and loading into a new average gives the same result."""
    model = conv_net().train()
    running = averaging.start(model)
    _train(model, running, range(5))
    state, weights = through_a_file(running.state_dict()), _values(model)
    _train(model, running, range(5, 10))
    expected = _values(running.averaged(model, _clean))

    model = conv_net(seed=9).train()
    running = averaging.start(model)
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    running.load_state_dict(state)
    _train(model, running, range(5, 10))
    assert _equal(_values(running.averaged(model, _clean)), expected)


def repeats_itself(averaging: Averaging) -> None:
    assert torch.equal(observed(averaging), observed(averaging))


def observed(averaging: Averaging) -> Tensor:
    """The averaged network after some updates, as one row of numbers."""
    model = conv_net().train()
    running = averaging.start(model)
    _train(model, running, range(10))
    return torch.cat([value.flatten().double() for value in _values(running.averaged(model, _clean))])
