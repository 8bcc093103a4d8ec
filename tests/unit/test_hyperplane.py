"""The shortest displacement to a plane inside the box, against general solvers."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from simulated_gpu import simulated_gpu
from torch import Tensor

from robustcli.contracts.networks import images
from robustcli.registry.types import Norm
from robustcli.threat.hyperplane import plane_distance, towards_plane
from robustcli.threat.threat import ThreatModel

NORMS: list[Norm] = ["linf", "l2", "l1"]
in_every_norm = pytest.mark.parametrize("norm", NORMS)


def shortest(x: np.ndarray, gap: float, weight: np.ndarray, norm: Norm) -> float | None:
    """Length of the shortest displacement by a general solver, or None where the plane misses the box."""
    count = len(x)
    low, high = -x, 1 - x
    if norm == "l2":
        if abs(gap) > (np.abs(weight) * np.where(gap * weight > 0, x, 1 - x)).sum():
            return None
        done = minimize(
            lambda delta: (delta**2).sum(),
            np.zeros(count),
            jac=lambda delta: 2 * delta,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda delta: weight @ delta + gap, "jac": lambda _delta: weight},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert done.success, done.message
        return float(np.sqrt(done.fun))
    # Variables besides the displacement: one bound for linf, a size for each coordinate for l1.
    sizes = 1 if norm == "linf" else count
    spread = np.ones((count, 1)) if norm == "linf" else np.eye(count)
    done = linprog(
        np.concatenate([np.zeros(count), np.ones(sizes)]),
        A_ub=np.block([[np.eye(count), -spread], [-np.eye(count), -spread]]),
        b_ub=np.zeros(2 * count),
        A_eq=np.concatenate([weight, np.zeros(sizes)])[None],
        b_eq=[-gap],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * sizes],
    )
    return None if done.status == 2 else float(done.fun)


def problems(count: int, *, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Images with pixels on the border, gaps of both signs and many magnitudes, normals with zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = images(count, 1, 4, seed=seed, dtype=dtype)
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight *= torch.rand(x.shape, generator=generator, dtype=torch.float64) > 0.2
    gap = 10 ** torch.linspace(-3, 1.2, count, dtype=torch.float64)
    gap *= torch.where(torch.rand(count, generator=generator) > 0.5, 1, -1)
    return x, gap.to(dtype), weight.to(dtype)


@in_every_norm
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_shortest_that_a_solver_finds(norm: Norm, seed: int) -> None:
    x, gap, weight = problems(24, seed=seed)
    delta = towards_plane(x, gap, weight, norm)
    assert ((x + delta).clamp(0, 1) - x - delta).abs().max() < 1e-12
    left = gap + (weight * delta).flatten(1).sum(1)
    lengths = ThreatModel(norm, 1).size(delta)  # type: ignore[arg-type]
    reachable = 0
    for i in range(len(x)):
        expected = shortest(x[i].flatten().numpy(), float(gap[i]), weight[i].flatten().numpy(), norm)
        if expected is None:
            # Every pixel with a gradient is at the end of its range, by the sign of the gap.
            end = torch.where(gap[i] * weight[i] > 0, 0.0, 1.0).double()
            counts = weight[i] != 0
            assert torch.allclose((x + delta)[i][counts], end[counts], rtol=0, atol=1e-12)
            assert (delta[i][~counts] == 0).all()
            assert left[i] * gap[i] > 0
        else:
            reachable += 1
            assert left[i].abs() < 1e-12 * (1 + gap[i].abs())
            assert lengths[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert 0 < reachable < len(x), "both kinds are tried"


@in_every_norm
def test_far_from_the_box_it_is_the_dual_norm(norm: Norm) -> None:
    _, gap, weight = problems(24, seed=3)
    x = torch.full_like(weight, 0.5)
    gap = 0.01 * gap
    delta = towards_plane(x, gap, weight, norm)
    is_free = (delta.abs() < 0.5).flatten(1).all(1)
    assert is_free.sum() > 10
    lengths = ThreatModel(norm, 1).size(delta)  # type: ignore[arg-type]
    assert torch.allclose(lengths[is_free], plane_distance(gap, weight, norm)[is_free])


@in_every_norm
def test_l1_looks_at_more_pixels_until_they_suffice(norm: Norm) -> None:
    """2000 pixels with little room each: the plane is reached with many pixels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 5, 20, 20, generator=generator, dtype=torch.float64)
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    most = (weight.abs() * torch.where(weight < 0, 1 - x, x)).flatten(1).sum(1)
    gap = most * torch.tensor([1e-4, 0.02, 0.1, 0.5, 0.9, 0.999])
    delta = towards_plane(x, gap, weight, norm)
    assert torch.allclose((weight * delta).flatten(1).sum(1), -gap)
    moved = (delta != 0).flatten(1).sum(1)
    assert moved[-1] > (1500 if norm == "l1" else 0)
    # As in a batch of one: a hard case does not change the others.
    alone = torch.cat([towards_plane(x[i : i + 1], gap[i : i + 1], weight[i : i + 1], norm) for i in range(6)])
    assert torch.allclose(alone, delta, rtol=0, atol=1e-12)


@in_every_norm
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_the_scale_of_the_gradient_does_not_matter(norm: Norm, scale: float) -> None:
    x, gap, weight = problems(24, seed=4, dtype=torch.float32)
    scaled = towards_plane(x, gap * scale, weight * scale, norm)
    assert torch.allclose(scaled, towards_plane(x, gap, weight, norm), rtol=0, atol=2e-5)


@in_every_norm
def test_without_gradient_or_gap_nothing_moves(norm: Norm) -> None:
    x, gap, weight = problems(8, seed=5, dtype=torch.float32)
    assert (towards_plane(x, gap, torch.zeros_like(weight), norm) == 0).all()
    assert (towards_plane(x, torch.zeros_like(gap), weight, norm) == 0).all()
    assert (plane_distance(torch.zeros_like(gap), weight, norm) == 0).all()


@in_every_norm
def test_single_precision_reaches_the_plane_too(norm: Norm) -> None:
    x, gap, weight = problems(200, seed=6)
    exact = towards_plane(x, gap, weight, norm)
    is_reached = (gap + (weight * exact).flatten(1).sum(1)).abs() < 1e-9
    rounded = towards_plane(x.float(), gap.float(), weight.float(), norm)
    left = (gap.float() + (weight.float() * rounded).flatten(1).sum(1)).abs()
    assert (left[is_reached] < 1e-5 * (1 + gap[is_reached].abs())).all()
    assert ((x.float() + rounded).clamp(0, 1) - x.float() - rounded).abs().max() < 1e-6


@in_every_norm
def test_a_gpu_finds_the_same_step_with_few_synchronizations(norm: Norm) -> None:
    x = images(30, 3)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gap = torch.linspace(-3, 3, 30) * weight.flatten(1).abs().sum(1) / 8
    expected = towards_plane(x, gap, weight, norm)
    with simulated_gpu() as gpu:
        found = towards_plane(x.to("cuda"), gap.to("cuda"), weight.to("cuda"), norm).cpu()
    assert torch.equal(found, expected)
    assert sum(gpu.waits_in("threat/hyperplane.py").values()) <= 3


def by_masks(x: Tensor, gap: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """The same method with choices by masks in place of products."""
    slope = weight.flatten(1)
    steepest = slope.abs().amax(1).clamp_min(torch.finfo(slope.dtype).tiny)
    rise, need = slope.abs() / steepest[:, None], gap.abs() / steepest
    sign = torch.where(gap > 0, -1, 1).to(slope.dtype)[:, None] * slope.sign()
    room = torch.where(sign > 0, 1 - x.flatten(1), x.flatten(1)).masked_fill(sign == 0, 0)
    speed = rise if norm == "l2" else torch.ones_like(rise)
    is_full = room <= 0
    while True:
        left = need - torch.where(is_full, rise * room, 0).sum(1)
        pace = torch.where(is_full, 0, rise * speed).sum(1)
        time = left.clamp_min(0) / pace.clamp_min(torch.finfo(rise.dtype).tiny)
        sizes = torch.where(is_full, room, time[:, None] * speed)
        is_filled = is_full | (sizes >= room)
        if torch.equal(is_filled, is_full):
            return (sign * sizes).view_as(x)
        is_full = is_filled


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_in_place_of_masks_change_no_bit(norm: Norm, dtype: torch.dtype) -> None:
    for seed in range(5):
        x, gap, weight = problems(300, seed=seed, dtype=dtype)
        assert torch.equal(towards_plane(x, gap, weight, norm), by_masks(x, gap, weight, norm))


@in_every_norm
def test_a_gradient_that_is_not_finite_spoils_only_its_own_image(norm: Norm) -> None:
    x, gap, weight = problems(30, seed=7, dtype=torch.float32)
    expected = towards_plane(x, gap, weight, norm)
    weight[3, 0, 0, 0], weight[5] = torch.nan, torch.inf
    found, others = towards_plane(x, gap, weight, norm), torch.tensor([i for i in range(30) if i not in (3, 5)])
    assert torch.equal(found[others], expected[others])
