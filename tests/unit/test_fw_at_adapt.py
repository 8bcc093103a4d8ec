"""FW-Adapt: the number of steps follows the distortion; cost and state."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_steps import COUNT, LINF, batch, counted, labeled
from torch import nn

from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, linear_net
from robustcli.data.targets import Labels
from robustcli.defenses.fw_at_adapt import AdaptedSteps, fw_at_adapt
from robustcli.defenses.min_max import MinMax
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import StreamNoise
from robustcli.workflows.train import run_experiment

PER_EPOCH = 5


def trace(model: nn.Module, settings: MinMax, epochs: int, classes: int = 10) -> list[list[int]]:
    """The steps of every attack, epoch by epoch."""
    step = settings.start(
        model.train(), torch.optim.SGD(model.parameters(), lr=0.01), StreamNoise.on(torch.device("cpu"))
    )
    found: list[list[int]] = [[] for _ in range(epochs)]
    for update in range(epochs * PER_EPOCH):
        x, y = batch(update)
        metrics = step(x, Labels.of(y % classes), LINF, Progress(update, PER_EPOCH, epochs))
        found[update // PER_EPOCH].append(int(metrics["attack_steps"]))
    return found


def test_every_epoch_begins_with_two_steps_and_adapts_to_them() -> None:
    # 20 images are more than two batches of 8 and fewer than three: the third is monitored as a whole.
    found = trace(conv_net(), fw_at_adapt(max_distortion=1.0, monitor_images=20), epochs=3)
    assert found == [[2, 2, 2, 3, 3], [2, 2, 2, 5, 5], [2, 2, 2, 7, 7]]


def test_an_unreachable_threshold_adds_steps_up_to_the_most() -> None:
    found = trace(conv_net(), fw_at_adapt(max_distortion=1.0, monitor_images=8, max_steps=15), epochs=9)
    assert [epoch[-1] for epoch in found] == [3, 5, 7, 9, 11, 13, 15, 15, 15]
    found = trace(conv_net(), fw_at_adapt(max_distortion=1.0, monitor_images=8, max_steps=6, increase=4), epochs=3)
    assert [epoch[-1] for epoch in found] == [5, 6, 6]


def test_monitoring_that_fills_the_epoch_of_own_images_is_refused(tmp_path: Path) -> None:
    """The number of images is known only when they are read; all of them would be attacked with two steps."""
    arrays = {"x": np.zeros((20, 8, 8), np.uint8), "y": np.arange(20) % 2}
    np.savez(tmp_path / "own.npz", **{f"{key}_{part}": arrays[key] for key in arrays for part in ("train", "test")})
    text = (
        "name: own\ndata: {name: npz, path: FILE}\narchitecture: {name: small_cnn, width: 4}\n"
        "threat: {norm: linf, eps: 0.1}\ndefense: {name: fw_at_adapt, monitor_images: 16}\n"
        "train: {epochs: 1, batch_size: 10, device: cpu}\n"
    )
    spec = ExperimentSpec.parse(text.replace("FILE", str(tmp_path / "own.npz")), "own")
    with pytest.raises(
        RobustCliError, match=r"monitor_images: 16 images are 2 batches, and an epoch has 2.* at most 10"
    ):
        run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))


def test_a_threshold_of_0_leaves_one_step() -> None:
    found = trace(conv_net(), fw_at_adapt(max_distortion=0.0, monitor_images=8), epochs=4)
    assert [epoch[-1] for epoch in found] == [1, 1, 1, 1]


def test_a_gradient_that_never_turns_needs_one_step() -> None:
    # Two classes: with more, the gradient of the cross-entropy turns although the logits are linear.
    model = linear_net(64, classes=2)
    found = trace(model, fw_at_adapt(max_distortion=0.99, monitor_images=8), epochs=3, classes=2)
    assert found == [[2, 1, 1, 1, 1]] * 3


def test_the_rule() -> None:
    settings = AdaptedSteps(max_distortion=0.9, monitor_images=1000, increase=2, max_steps=15)
    assert [settings.decide(steps, 0.95) for steps in (1, 2, 3, 7, 15)] == [1, 1, 1, 3, 7]
    assert [settings.decide(steps, 0.85) for steps in (1, 2, 3, 7, 14, 15)] == [3, 4, 5, 9, 15, 15]
    assert settings.decide(8, 0.9) == 4


@pytest.mark.parametrize("saved_after", range(1, 3 * PER_EPOCH))
def test_resume_after_any_update_changes_nothing(saved_after: int) -> None:
    settings = fw_at_adapt(max_distortion=1.0, monitor_images=20)

    def run(model: nn.Module, updates: range, state: Any) -> tuple[list[int], Any]:
        step = settings.start(
            model.train(), torch.optim.SGD(model.parameters(), lr=0.01), StreamNoise.on(torch.device("cpu"))
        )
        if state is not None:
            # Half of the states as earlier versions wrote them, without the name of the part.
            step.load_state_dict(state if saved_after % 2 else state["curriculum"])
        steps = [int(step(*labeled(u), LINF, Progress(u, PER_EPOCH, 3))["attack_steps"]) for u in updates]
        return steps, step.state_dict()

    model = conv_net()
    whole, last = run(model, range(3 * PER_EPOCH), None)
    model = conv_net()
    first, state = run(model, range(saved_after), None)
    second, end = run(model, range(saved_after, 3 * PER_EPOCH), deepcopy(state))
    assert first + second == whole
    assert end.keys() == last.keys() == {"curriculum"}
    assert end["curriculum"] == last["curriculum"]


def test_a_step_costs_its_attack_and_one_branch() -> None:
    model = conv_net()
    settings = fw_at_adapt(max_distortion=1.0, monitor_images=COUNT)
    step = settings.start(
        model.train(), torch.optim.SGD(model.parameters(), lr=0.01), StreamNoise.on(torch.device("cpu"))
    )
    for update, steps in enumerate([2, 3, 3]):
        with counted(model) as passes:
            model.zero_grad()
            step(*labeled(update), LINF, Progress(update, PER_EPOCH, 3))
        assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (steps + 1, steps, steps, 1)
