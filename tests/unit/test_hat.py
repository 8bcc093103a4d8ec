"""HAT against its formula, limits and cost; its helper from a file and trained along."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_steps import LINF, batch, counted, labeled, progress, same, tracked, train
from torch import nn

from robustcli.attacks.losses import kl_divergence
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net
from robustcli.defenses import Batch
from robustcli.defenses.hat import HatLoss, RunningHat, hat
from robustcli.defenses.trades import trades
from robustcli.errors import Interrupted, RobustCliError
from robustcli.optimization.clipping import clip_gradients
from robustcli.optimization.rates import set_rates
from robustcli.optimization.weights.awp import Awp
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import Checkpoint
from robustcli.threat.noise import StreamNoise
from robustcli.training import loop
from robustcli.training.model import TrainingModel
from robustcli.workflows.train import run_experiment


def a_batch() -> Batch:
    x, y = batch(dtype=torch.float64)
    return Batch(x, y, (x + 0.03 * torch.sign(x - 0.5)).clamp(0, 1))


def saved(network: nn.Module, folder: Path) -> str:
    """A checkpoint of a network, as a run writes it."""
    path = folder / "helper.pt"
    Checkpoint(spec="", weights=network.state_dict()).write(path)
    return str(path)


def started(model: nn.Module, **settings: Any) -> RunningHat:
    loss = hat(**settings).loss
    assert isinstance(loss, HatLoss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return loss.start(model.train(), optimizer, StreamNoise.on(torch.device("cpu")))


@pytest.mark.parametrize(("beta", "gamma", "h"), [(2.5, 0.5, 2.0), (0.0, 1.0, 3.0), (1.0, 0.25, 1.0)])
def test_loss_is_its_formula(beta: float, gamma: float, h: float, tmp_path: Path) -> None:
    helper = conv_net(seed=5, dtype=torch.float64).eval()
    model, data = conv_net(dtype=torch.float64), a_batch()
    running = started(
        model, helper=saved(helper, tmp_path), beta=beta, helper_weight=gamma, extrapolation=h, step_size=0.1
    )
    running.begin(data, progress())
    found = running(model, data)
    z, z_adv = model(data.x), model(data.x_adv)
    labels = helper(data.x_adv).argmax(1)
    assert (labels != data.y).any()
    beyond = data.x + h * (data.x_adv - data.x)
    expected = F.cross_entropy(z, data.y) + gamma * F.cross_entropy(model(beyond), labels)
    expected = expected + beta * kl_divergence(z_adv, z.log_softmax(1)).mean()
    assert found.item() == pytest.approx(expected.item())
    weights = list(model.parameters())
    grads = torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights)
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_point_beyond_is_not_cut_at_the_box(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    model, data = conv_net(dtype=torch.float64), a_batch()
    running = started(model, helper=saved(conv_net(dtype=torch.float64), tmp_path), extrapolation=4.0)
    running.begin(data, progress())
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    running(model, data)
    hook.remove()
    assert seen[-1].max() > 1
    assert torch.equal(seen[-1], data.x + 4 * (data.x_adv - data.x))


def test_without_the_helper_s_weight_it_is_trades() -> None:
    found = train(hat(helper_weight=0.0, beta=6.0, steps=3), conv_net())
    assert same(found, train(trades(beta=6.0, steps=3), conv_net()))


# The helper from a file.


@pytest.mark.parametrize("inside", [False, True])
def test_the_helper_is_the_saved_network_and_stays_it(inside: bool, tmp_path: Path) -> None:
    """Also where the model wraps the network whose weights were saved."""
    other, model = conv_net(seed=5), conv_net()
    path = saved(other, tmp_path)
    wrapped = TrainingModel(model, TrainSettings(epochs=1), torch.device("cpu")) if inside else model
    running = started(wrapped, helper=path)
    step = hat(helper=path, steps=1).start(
        wrapped, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(torch.device("cpu"))
    )
    for update in range(3):
        step(*labeled(update), LINF, progress(update))
    assert isinstance(step.loss, RunningHat)
    kept = step.state_dict()["loss"]["helper"]
    expected = other.state_dict()
    for name, value in expected.items():
        assert torch.equal(kept[f"network.{name}" if inside else name], value)
    assert not any(parameter.requires_grad for parameter in running.helper.parameters())
    assert not any(module.training for module in running.helper.modules())


def test_a_helper_of_another_architecture_is_refused(tmp_path: Path) -> None:
    running = started(conv_net(), helper=saved(nn.Linear(3, 2), tmp_path))
    with pytest.raises(RobustCliError, match="expected a checkpoint with the architecture of this spec"):
        running.begin(a_batch(), progress())
    running = started(conv_net(), helper=saved(conv_net(classes=7), tmp_path))
    with pytest.raises(RobustCliError, match="size mismatch"):
        running.begin(a_batch(), progress())


SPEC = """\
name: helped
data: {name: digits, val_size: 20, train_size: 40}
architecture: {name: small_cnn, width: 4, hidden: 8}
threat: {norm: linf, eps: 0.05}
defense: {name: hat, steps: 1, helper: HELPER}
train: {epochs: 2, batch_size: 20, device: cpu, check_examples: 10, check_steps: 1}
evaluate: {}
"""


def test_a_helper_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    spec = ExperimentSpec.parse(SPEC.replace("HELPER", str(tmp_path / "gone.pt")), "helped")
    with pytest.raises(RobustCliError, match=r"gone\.pt: no such file"):
        run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))
    assert not list(tmp_path.rglob("*.pt")), "began without a helper"


def test_a_run_goes_on_although_the_file_of_its_helper_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds the helper, so that a run that was moved or tidied up can be resumed."""
    file, screen = tmp_path / "helper.pt", Screen(is_quiet=True)
    natural = SPEC.replace("name: helped", "name: natural").replace("{name: hat, steps: 1, helper: HELPER}", "natural")
    made = run_experiment(ExperimentSpec.parse(natural, "natural"), tmp_path / "runs", screen).best
    spec = ExperimentSpec.parse(SPEC.replace("HELPER", str(file)), "helped")
    shutil.copyfile(made, file)
    whole = run_experiment(spec, tmp_path / "whole", screen)
    end = loop._end_epoch

    def stop_after_it(*given: Any) -> None:
        end(*given)
        raise Interrupted

    monkeypatch.setattr(loop, "_end_epoch", stop_after_it)
    with pytest.raises(Interrupted):
        run_experiment(spec, tmp_path / "runs", screen)
    monkeypatch.setattr(loop, "_end_epoch", end)
    file.unlink()
    resumed = run_experiment(spec, tmp_path / "runs", screen, resume=True)
    weights = [Checkpoint.read(folder.last).weights for folder in (whole, resumed)]
    assert same(*(list(one.values()) for one in weights))


# The helper trained along with the network.


def test_the_helper_is_trained_naturally_together_with_the_network() -> None:
    """With the loop's rates and momenta, the helper is trained like a natural network."""
    model, twin = conv_net().train(), conv_net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    running = HatLoss(beta=1.0, helper_weight=1.0, extrapolation=2.0, helper="beside").start(
        model, optimizer, StreamNoise.on(torch.device("cpu"))
    )
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for update, (rate, momentum) in enumerate(((0.1, 0.9), (0.02, 0.9), (0.02, 0.8))):
        x, y = batch(update)
        for each in (optimizer, plain):
            set_rates(each, rate, momentum)
        before = deepcopy(model.state_dict())
        running.begin(Batch(x, y, x), progress(update))
        assert same(list(before.values()), list(model.state_dict().values())), "the network moved"
        twin.train()
        plain.zero_grad()
        F.cross_entropy(twin(x), y).backward()  # type: ignore[no-untyped-call]
        plain.step()
        assert same(list(running.helper.state_dict().values()), list(twin.state_dict().values()))


def test_gradients_of_the_helper_are_clipped_like_those_of_the_network() -> None:
    """With a tiny limit, an update without momentum moves the helper by the learning rate times this limit."""
    model = conv_net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    clip_gradients(optimizer, model, 0.01)
    loss = HatLoss(beta=1.0, helper_weight=1.0, extrapolation=2.0, helper="beside")
    running = loss.start(model, optimizer, StreamNoise.on(torch.device("cpu")))
    before = nn.utils.parameters_to_vector(running.helper.parameters()).detach()
    x, y = batch()
    running.begin(Batch(x, y, x), progress())
    moved = nn.utils.parameters_to_vector(running.helper.parameters()).detach() - before
    assert float(moved.norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)


@pytest.mark.parametrize("helper", ["file", "beside"])
@pytest.mark.parametrize("with_awp", [False, True])
def test_a_step_costs_trades_one_more_branch_and_one_forward_of_the_helper(
    helper: str, with_awp: bool, tmp_path: Path
) -> None:
    """31 units with ten attack steps: 1 + 10 (1 + 1) + 3 (1 + 2) + 1. AWP needs no second forward of the helper."""
    model = conv_net().train()
    defense = hat(steps=5, helper=saved(conv_net(), tmp_path) if helper == "file" else "beside")
    defense = replace(defense, weights=Awp()) if with_awp else defense
    step = defense.start(model, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(torch.device("cpu")))
    assert isinstance(step.loss, RunningHat)
    before, calls = tracked(model), []
    step.loss.helper.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with counted(model) as passes:
        step(*labeled(), LINF, progress())
    branches = 6 if with_awp else 3
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (6 + branches, 6, 5, branches)
    assert [now - then for now, then in zip(tracked(model), before, strict=True)] == [3] * 2
    assert calls == ([False] if helper == "file" else [True, False])
    assert all(parameter.grad is None for parameter in step.loss.helper.parameters()) == (helper == "file")


def test_the_accuracy_of_the_helper_is_recorded() -> None:
    model = conv_net().train()
    step = hat(steps=1).start(model, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(torch.device("cpu")))
    metrics = step(*labeled(), LINF, progress())
    assert set(metrics) == {"loss", "helper_accuracy"}
    assert 0 <= metrics["helper_accuracy"] <= 1
