"""Running divisors of preconditioned convolutions: their mean, its updates, and its storage."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from networks import build, build_weightless, count_parameters
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.convnorm import PreconditionedConv2d, RunningPreconditionedConv2d, settle_divisors
from robustcli.architectures.running_statistics import RunningStatistics
from robustcli.attacks.crafting import crafting, statistics_held
from robustcli.errors import RobustCliError
from robustcli.models.build import build_network
from robustcli.optimization.averaging.averaged_copy import AveragedCopy
from robustcli.registry.registry import MemberSpec
from robustcli.specs.spec import ExperimentSpec

SHAPE = ImageShape(1, 8, 8, 3)


class Largest(RunningStatistics):
    """A layer of another package, which divides by the largest value that it has seen."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.tensor(1.0))
        self.track_running_stats = True

    def reset_running_stats(self) -> None:
        self.largest.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.track_running_stats:
            self.largest.copy_(torch.maximum(self.largest, x.detach().max()))
        return x / self.largest


def test_layers_of_other_packages_are_treated_like_batch_norms() -> None:
    model = nn.Sequential(Largest(), nn.Flatten(), nn.Linear(4, 2)).train()
    x = torch.full((1, 1, 2, 2), 5.0)
    with crafting(model, "batch_no_update"):
        assert model[0].training
        model(x)
    assert float(model[0].largest) == 1  # type: ignore[arg-type]
    average = AveragedCopy(model, "re_estimate")
    model(2 * x)
    network = average.evaluated(model, lambda: [x])
    assert float(network[0].largest) == 5  # type: ignore[index]


def layer(kernel: int = 3, stride: int = 1) -> RunningPreconditionedConv2d:
    torch.manual_seed(0)
    return RunningPreconditionedConv2d(2, 3, kernel, stride, 1)


def moved(part: PreconditionedConv2d, factor: float) -> None:
    with torch.no_grad():
        part.convolution.weight.mul_(factor)


def running_of(network: nn.Module) -> list[RunningPreconditionedConv2d]:
    return [module for module in network.modules() if isinstance(module, RunningPreconditionedConv2d)]


def network_of(norm: str = "conv_running") -> nn.Module:
    torch.manual_seed(0)
    network = build("resnet18", SHAPE, width=4, norm=norm)
    settle_divisors(network, SHAPE)
    return network


def images(count: int = 4) -> Tensor:
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("begin", [0, 15_000, 39_990, 60_000])
def test_the_mean_is_its_formula(kernel: int, begin: int) -> None:
    part, x = layer(kernel).train(), torch.randn(2, 2, 5, 7)
    sides = (1, 1) if kernel == 1 else (7, 9)
    expected = torch.full_like(part.divisor(*sides), 2.0)
    part.running_divisor = expected.clone()
    part.steps.fill_(begin)
    for t in range(begin, begin + 3):
        share = max(0.5 * (math.cos(math.pi * t / 40_000) + 1), 0.01) if t < 40_000 else 0.01
        expected = share * part.divisor(*sides) + (1 - share) * expected
        part(x)
        torch.testing.assert_close(part.running_divisor, expected)
        moved(part, 1.5)
    assert int(part.steps) == begin + 3


def test_training_uses_the_divisor_of_now_and_evaluation_the_mean() -> None:
    part, x = layer(), torch.randn(2, 2, 5, 7)
    plain = PreconditionedConv2d(2, 3, 3, 1, 1)
    plain.load_state_dict({key: value for key, value in part.state_dict().items() if "." in key})
    # Before the first step there is no mean, and reading it creates none.
    torch.testing.assert_close(part.eval()(x), plain(x))
    assert not part.running_divisor.numel()
    before = plain(x)
    torch.testing.assert_close(part.train()(x), before)
    for each in (part, plain):
        moved(each, 3.0)
    torch.testing.assert_close(plain(x), before, atol=1e-5, rtol=1e-4)
    bias = part.affine.bias.view(1, 3, 1, 1)
    # Kernels three times as large are no longer divided by all of their size.
    torch.testing.assert_close(part.eval()(x) - bias, 3 * (before - bias), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(part.train()(x), plain(x))


def test_attacks_treat_it_as_a_running_statistic() -> None:
    network, x = network_of().train(), images()
    network(x)
    parts = running_of(network)
    assert len(parts) == 20
    for part in parts:
        moved(part, 2.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def changed() -> set[str]:
        return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}

    found: dict[str, Tensor] = {}
    for mode in ("eval", "batch_no_update", "train"):
        assert not changed()
        with crafting(network, mode):  # type: ignore[arg-type]
            found[mode] = network(x).detach()
        assert all(part.training and part.track_running_stats for part in parts)
    torch.testing.assert_close(found["batch_no_update"], found["train"])
    assert not torch.allclose(found["eval"], found["train"], atol=1e-3)
    kinds = {name.rpartition(".")[2] for name in changed()}
    assert kinds == {"running_divisor", "steps", "running_mean", "running_var", "num_batches_tracked"}


def test_what_holds_statistics_holds_it() -> None:
    network = network_of().train()
    with statistics_held(network):
        network(images())
    assert {int(part.steps) for part in running_of(network)} == {0}
    network(images())
    assert {int(part.steps) for part in running_of(network)} == {1}


def test_a_state_goes_into_a_new_network_whether_it_is_settled_or_not() -> None:
    trained = network_of().train()
    for _ in range(2):
        trained(images())
        for part in running_of(trained):
            moved(part, 1.3)
    state = trained.state_dict()
    for other in (network_of(), build("resnet18", SHAPE, width=4, norm="conv_running")):
        other.load_state_dict(state)
        assert {int(part.steps) for part in running_of(other)} == {2}
        with torch.no_grad():
            assert torch.equal(other.eval()(images()), trained.eval()(images()))
    empty = build("resnet18", SHAPE, width=4, norm="conv_running")
    other.load_state_dict(empty.state_dict())
    assert not any(part.running_divisor.numel() for part in running_of(other))


def test_images_of_another_size_are_refused_after_training() -> None:
    network = network_of().eval()
    with pytest.raises(RobustCliError, match=r"conv_running has divisors for \(10, 6\) frequencies, .* \(18, 10\)"):
        network(torch.rand(1, 1, 16, 16))
    other = build("resnet18", ImageShape(1, 16, 16, 3), width=4, norm="conv_running")
    settle_divisors(other, ImageShape(1, 16, 16, 3))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(network.state_dict())


@pytest.mark.parametrize("buffers", ["copy", "average", "re_estimate"])
def test_averages_have_divisors_of_their_own(buffers: Any) -> None:
    network = network_of().train()
    shadow = AveragedCopy(network, buffers)
    for part in running_of(network):
        moved(part, 2.0)
    network(images())
    shadow.move(network, 0.5)
    for part in running_of(shadow.network):
        # Of earlier estimates, which would leave almost all of the mean as it is.
        part.steps.fill_(40_000)
    evaluated = shadow.evaluated(network, lambda: iter([images()]))
    for own, live in zip(running_of(evaluated), running_of(network), strict=True):
        side = live.running_divisor.shape[1]
        begun = 2 * live.running_divisor
        expected = {
            "copy": live.running_divisor,
            "average": 0.5 * begun + 0.5 * live.running_divisor,
            "re_estimate": own.divisor(side, side),
        }[buffers]
        torch.testing.assert_close(own.running_divisor, expected)
        assert not own.training


def test_a_network_of_a_spec_is_settled_and_costs_what_conv_does() -> None:
    text = """
name: d
data: digits
architecture: {name: resnet18, width: 4, norm: conv_running}
threat: {norm: linf, eps: 0.1}
defense: pgd_at
train: {epochs: 2}
"""
    chosen: MemberSpec = ExperimentSpec.parse(text, "the test").architecture
    network = build_network(chosen, SHAPE, (0.5,), (0.5,))
    assert network.training
    parts = running_of(network)
    assert {tuple(part.running_divisor.shape[1:]) for part in parts} >= {(10, 6), (6, 4), (1, 1)}
    shadow = AveragedCopy(network, "average")
    network(images())
    shadow.move(network, 0.1)
    assert count_parameters(build_weightless("resnet18", norm="conv_running")) == 11_214_794


def test_only_running_divisors_are_settled() -> None:
    calls: list[Mapping[str, Any]] = []
    network = build("resnet18", SHAPE, width=4, norm="conv")
    network.register_forward_hook(lambda *_: calls.append({}))
    settle_divisors(network, SHAPE)
    assert not calls
