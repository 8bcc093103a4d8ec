"""Muon: semi-orthogonal updates of hidden weights, SGD with Nesterov momentum for the rest."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.optimization.optimizers.muon import muon, orthogonalized
from robustcli.training.model import parameter_groups


def small_network() -> nn.Sequential:
    """Stem, two hidden convolutions, a norm and a classifier, with gradients of a loss."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(5)
    )
    network(torch.rand(4, 3, 9, 9)).square().sum().backward()
    return network


def groups(network: nn.Module, decay: float = 0.0) -> list[dict[str, Any]]:
    return [{"params": list(network.parameters()), "weight_decay": decay}]


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 6, 54), (2, 54, 6)])
def test_singular_values_become_almost_one_and_vectors_stay(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    sizes = torch.logspace(0, -2, min(shape[1:]), dtype=torch.float64)
    moves = orthogonalized(u @ torch.diag(sizes) @ v)
    values = (u.mT @ moves @ v.mT).diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.65
    assert values.max() < 1.15
    torch.testing.assert_close(u @ torch.diag_embed(values) @ v, moves)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_the_small_gram_matrix_gives_what_five_steps_on_the_matrix_give() -> None:
    matrix = torch.randn(16, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalized(matrix[None])[0], x)
    torch.testing.assert_close(orthogonalized(matrix[None].float())[0].double(), x, rtol=1e-4, atol=1e-5)


def test_stem_classifier_norms_and_biases_are_updated_by_sgd_and_hidden_weights_are_not() -> None:
    network, other = small_network(), small_network()
    optimizer = muon(groups(network, 0.01), 0.1, momentum=0.8)
    sgd = torch.optim.SGD(groups(other, 0.01), 0.1, momentum=0.8, nesterov=True)
    for _ in range(3):
        optimizer.step()
        sgd.step()
    hidden = {"1.weight", "3.weight"}
    for (name, weight), (_, expected) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        if name in hidden:
            assert not torch.allclose(weight, expected)
        else:
            torch.testing.assert_close(weight, expected)


class Positions(nn.Module):
    """A learned position for each of 3 x 3 pixels, registered as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


@pytest.mark.parametrize("exclude", ["none", "bn", "bn_and_bias", "vectors"])
def test_the_classifier_is_updated_by_sgd_whatever_is_spared_weight_decay(exclude: str) -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        norm, classifier = nn.LayerNorm([3, 3]), nn.Linear(72, 5)
        layers = nn.Sequential(nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 3), Positions(), norm, nn.Flatten(), classifier)
        layers(torch.rand(4, 3, 9, 9)).square().sum().backward()
        return layers

    changed, other = network(), network()
    muon(parameter_groups(changed, 0.01, exclude), 0.1).step()
    torch.optim.SGD(parameter_groups(other, 0.01, exclude), 0.1, momentum=0.9, nesterov=True).step()
    assert not torch.allclose(changed.get_parameter("1.weight"), other.get_parameter("1.weight"))
    spared = {"none": [], "bn": ["3.weight"], "bn_and_bias": ["3.weight"], "vectors": ["2.pos_embed", "3.weight"]}
    for name in ("0.weight", "5.weight", "5.bias", *spared[exclude]):
        torch.testing.assert_close(changed.get_parameter(name), other.get_parameter(name))


def test_parameters_that_are_not_trained_do_not_count() -> None:
    """The shares of a search come after the classifier and have an optimizer of their own."""
    network, other = small_network(), small_network()
    for each in (network, other):
        each.append(nn.ParameterList([nn.Parameter(torch.zeros(2, 7), requires_grad=False)]))
    muon(groups(network), 0.1).step()
    torch.optim.SGD(groups(other), 0.1, momentum=0.9, nesterov=True).step()
    torch.testing.assert_close(network.get_parameter("5.weight"), other.get_parameter("5.weight"))


def test_convolutions_over_time_are_hidden_weights() -> None:
    network = nn.Sequential(*(nn.Conv3d(2, 2, 3, bias=False) for _ in range(3)))
    network(torch.rand(1, 2, 7, 7, 7)).square().sum().backward()
    weight = network.get_parameter("1.weight")
    before, gradient = weight.detach().clone(), weight.grad
    assert gradient is not None
    muon(groups(network), 0.1, momentum=0.8).step()
    direction = orthogonalized((1.8 * gradient).flatten(1)[None])[0].view_as(weight)
    torch.testing.assert_close(weight.detach(), before - 0.1 * 0.1 * direction)


def test_a_hidden_weight_moves_by_the_rate_and_its_decay_is_decoupled() -> None:
    network = small_network()
    weight = network.get_parameter("1.weight")
    before, gradient = weight.detach().clone(), weight.grad
    assert gradient is not None
    muon(groups(network, 0.5), 0.1, momentum=0.8, hidden_rate=0.2).step()
    direction = orthogonalized((1.8 * gradient).flatten(1)[None])[0].view_as(weight)
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * direction)


def test_a_tall_weight_moves_farther_so_that_every_row_moves_as_far() -> None:
    network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 18), nn.Linear(18, 3))
    network(torch.rand(5, 4)).square().sum().backward()
    weight = network.get_parameter("1.weight")
    before, gradient = weight.detach().clone(), weight.grad
    assert gradient is not None
    muon(groups(network), 0.1).step()
    torch.testing.assert_close(weight.detach(), before - 0.1 * 0.1 * 3 * orthogonalized(gradient[None])[0])


def test_blocks_of_rows_are_orthogonalized_on_their_own() -> None:
    network = small_network()
    weight = network.get_parameter("3.weight")
    before, gradient = weight.detach().clone(), weight.grad
    assert gradient is not None
    muon(groups(network), 0.1, momentum=0.8, block=3).step()
    moves = (1.8 * gradient).flatten(1)
    blocks = [orthogonalized(moves[rows][None])[0] for rows in (slice(0, 3), slice(3, 6), slice(6, 8))]
    torch.testing.assert_close(weight.detach(), before - 0.1 * 0.1 * torch.cat(blocks).view_as(weight))


def test_a_larger_gradient_gives_the_same_move_of_hidden_weights() -> None:
    moved: list[Tensor] = []
    for factor in (1.0, 1000.0):
        network = small_network()
        for weight in network.parameters():
            weight.grad = factor * weight.grad if weight.grad is not None else None
        muon(groups(network), 0.1).step()
        moved.append(network.get_parameter("3.weight").detach())
    torch.testing.assert_close(moved[0], moved[1])


def test_a_restored_optimizer_continues_with_equal_bits() -> None:
    network, other = small_network(), small_network()
    optimizer = muon(groups(network), 0.1)
    optimizer.step()
    other.load_state_dict(network.state_dict())
    restored = muon(groups(other), 0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    restored.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_a_copy_with_its_network_makes_the_same_steps() -> None:
    network = small_network()
    optimizer = muon(groups(network), 0.1, hidden_rate=0.3, block=3)
    other, copied = copy.deepcopy((network, optimizer))
    for each, updated in ((network, optimizer), (other, copied)):
        for weight in each.parameters():
            weight.grad = torch.ones_like(weight)
        updated.step()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
