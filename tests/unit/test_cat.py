"""CAT: when the steps rise, its score, its cost, and its state."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_steps import COUNT, LINF, batch, counted, labeled
from torch import nn

from robustcli.attacks.none import NoAttack
from robustcli.contracts.networks import conv_net
from robustcli.defenses import Batch
from robustcli.defenses.cat import ScoredCrossEntropy, cat
from robustcli.defenses.min_max import MinMax, MinMaxStep
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.optimization.weights.awp import Awp
from robustcli.threat.noise import StreamNoise

PER_EPOCH, EPOCHS = 3, 4


def started(settings: MinMax, model: nn.Module) -> MinMaxStep:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    return settings.start(model, optimizer, StreamNoise.on(torch.device("cpu")).reseed(0))


def trace(settings: MinMax, model: nn.Module) -> tuple[list[int], list[float]]:
    """The steps of every epoch, and the accuracy of every update."""
    step = started(settings, model)
    steps, right = [], []
    for update in range(EPOCHS * PER_EPOCH):
        with counted(model) as passes:
            model.zero_grad()
            metrics = step(*labeled(update % PER_EPOCH), LINF, Progress(update, PER_EPOCH, EPOCHS))
        taken = int(metrics["attack_steps"])
        assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (taken + 1, taken, taken, 1)
        steps.append(taken)
        right.append(float(metrics["robust_train"]))
    by_epoch = [set(steps[first : first + PER_EPOCH]) for first in range(0, len(steps), PER_EPOCH)]
    assert all(len(taken) == 1 for taken in by_epoch), "the steps changed within an epoch"
    return [taken.pop() for taken in by_epoch], right


def test_a_threshold_that_is_always_met_adds_steps_up_to_the_most() -> None:
    assert trace(cat(raise_at=0.0, steps=10), conv_net())[0] == [1, 2, 3, 4]
    assert trace(cat(raise_at=0.0, steps=5, first_steps=0, increase=2), conv_net())[0] == [0, 2, 4, 5]


def test_a_threshold_that_is_never_met_leaves_the_first_steps() -> None:
    assert trace(cat(raise_at=1.0, first_steps=2), conv_net())[0] == [2, 2, 2, 2]


def test_the_mean_of_the_last_epoch_decides() -> None:
    model = conv_net()
    _, right = trace(cat(raise_at=1.0), model)
    first = sum(right[:PER_EPOCH]) / PER_EPOCH
    assert 0 < first < 1
    assert len(set(right[:PER_EPOCH])) > 1, "every update is like the mean"
    assert trace(cat(raise_at=first - 1e-6), conv_net())[0][1] == 2
    assert trace(cat(raise_at=first + 1e-6), conv_net())[0][1] == 1


def test_with_steps_that_cannot_rise_it_is_pgd_at() -> None:
    curricular, usual = conv_net(), conv_net()
    for settings, model in ((cat(steps=3, first_steps=3), curricular), (pgd_at(steps=3), usual)):
        step = started(settings, model)
        for update in range(4):
            step(*labeled(update), LINF, Progress(update, PER_EPOCH, EPOCHS))
    assert all(torch.equal(a, b) for a, b in zip(curricular.parameters(), usual.parameters(), strict=True))


def test_the_score_is_the_accuracy_at_the_unperturbed_weights() -> None:
    model = conv_net().eval()
    x, y = batch()
    with torch.no_grad():
        predicted = model(x).argmax(1)
    y = torch.where(torch.arange(COUNT) < 5, predicted, (predicted + 1) % 10)
    running = ScoredCrossEntropy().start(
        model, torch.optim.SGD(model.parameters()), StreamNoise.on(torch.device("cpu"))
    )
    running.begin(Batch(x, y, x), Progress(0, 1, 1))
    running(model, Batch(x, y, x)).backward()
    assert float(running.metrics["robust_train"]) == 5 / 8
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    running(model, Batch(x, y, x))
    assert float(running.metrics["robust_train"]) == 5 / 8
    # The largest class share is the label.
    running.begin(Batch(x, y, x), Progress(0, 1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    shares = 0.9 * nn.functional.one_hot(y, 10).float() + 0.01
    running(model, Batch(x, shares, x))
    assert float(running.metrics["robust_train"]) == 5 / 8


@pytest.mark.parametrize("saved_after", [1, 2, 3, 4, 7, 11])
def test_resume_after_any_update_changes_nothing(saved_after: int) -> None:
    settings = replace(cat(raise_at=0.05, steps=4), weights=Awp(gamma=0.01))

    def run(model: nn.Module, updates: range, state: Any) -> tuple[list[dict[str, float]], Any]:
        step = started(settings, model)
        if state is not None:
            step.load_state_dict(state)
        found = []
        for update in updates:
            step.rng.reseed(0, "attack", update)  # type: ignore[attr-defined]
            metrics = step(*labeled(update), LINF, Progress(update, PER_EPOCH, EPOCHS))
            found.append({name: float(value) for name, value in metrics.items()})
        return found, deepcopy(step.state_dict())

    model = conv_net()
    whole, last = run(model, range(PER_EPOCH * EPOCHS), None)
    assert whole[-1]["attack_steps"] > 1
    model = conv_net()
    first, state = run(model, range(saved_after), None)
    second, end = run(model, range(saved_after, PER_EPOCH * EPOCHS), state)
    assert first + second == whole
    assert end["curriculum"] == last["curriculum"]


def test_what_cannot_rise_is_refused() -> None:
    with pytest.raises(RobustCliError, match=r"defense\.first_steps: 3 exceeds the maximum, steps: 2"):
        cat(steps=2, first_steps=3)
    step = started(replace(cat(), attack=NoAttack()), conv_net())
    with pytest.raises(RobustCliError, match="its steps changes during training, and NoAttack has none"):
        step(*labeled(), LINF, Progress(0, 1, 1))
