"""The geometry of the threat set, for all norms, radii, shapes and images."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.errors import RobustCliError
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise, StreamNoise
from robustcli.threat.threat import ThreatModel

EPS: dict[Norm, list[Fraction]] = {
    "linf": [Fraction(0), Fraction(1, 255), Fraction(8, 255), Fraction(1, 2), Fraction(1)],
    "l2": [Fraction(0), Fraction(1, 100), Fraction(128, 255), Fraction(3)],
    "l1": [Fraction(0), Fraction(1, 50), Fraction(2), Fraction(12)],
}
NORMS: list[Norm] = ["linf", "l2", "l1"]


@dataclass(frozen=True)
class Case:
    """A threat model, images with pixels on the border of the box, and points that need not be images."""

    threat: ThreatModel
    x: Tensor
    points: Tensor
    seed: int


@st.composite
def cases(draw: st.DrawFn, norms: list[Norm] = NORMS, dtype: torch.dtype = torch.float32) -> Case:
    norm = draw(st.sampled_from(norms))
    threat = ThreatModel(norm, draw(st.sampled_from(EPS[norm])))
    shape = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 3])),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    )
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    x = (1.4 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1).to(dtype)
    scale = draw(st.sampled_from([0.001, 0.1, 1.0, 30.0]))
    points = x + scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return Case(threat, x, points, seed)


def rounding(threat: ThreatModel) -> float:
    return 1e-6 * max(1.0, threat.radius)


@given(cases())
def test_projection_is_inside_and_stays_where_it_is(case: Case) -> None:
    projected = case.threat.project(case.points, case.x)
    assert case.threat.contains(projected, case.x).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    again = case.threat.project(projected, case.x)
    assert (again - projected).abs().max() <= rounding(case.threat)


@given(cases(dtype=torch.float64))
def test_projection_never_leaves_the_ball_in_double_precision(case: Case) -> None:
    delta = case.threat.project(case.points, case.x) - case.x
    assert (case.threat.size(delta) <= case.threat.radius * (1 + 1e-12) + 1e-14).all()


@given(cases(dtype=torch.float64), st.floats(0, 4))
def test_bound_is_the_projection_where_the_box_is_far(case: Case, length: float) -> None:
    """Away from the box, the nearest perturbation of a length is the one that the projection finds."""
    delta = case.points - case.x
    bound = case.threat.bound(delta, length)
    assert (case.threat.size(bound) <= length * (1 + 1e-12) + 1e-14).all()
    assert (case.threat.bound(bound, length) - bound).abs().max() <= 1e-9
    middle = torch.full_like(case.x, 0.5)
    if length <= 0.5:
        ball = ThreatModel(case.threat.norm, Fraction(length))
        assert torch.allclose(ball.project(middle + delta, middle) - middle, bound, rtol=0, atol=1e-9)


@given(cases())
def test_noise_is_a_perturbation_of_the_ball_and_sample_cuts_it_at_the_box(case: Case) -> None:
    index = torch.arange(len(case.x))
    noise = case.threat.noise(case.x, IndexedNoise(case.seed, index))
    assert (case.threat.size(noise) <= case.threat.radius * (1 + 1e-5) + 1e-6).all()
    sampled = case.threat.sample(case.x, IndexedNoise(case.seed, index))
    assert torch.equal(sampled, case.threat.project(case.x + noise, case.x))


@given(cases())
def test_radius_0_gives_x(case: Case) -> None:
    point = ThreatModel(case.threat.norm, Fraction(0))
    assert torch.equal(point.project(case.points, case.x), case.x)
    assert torch.equal(point.sample(case.x, IndexedNoise(case.seed, torch.arange(len(case.x)))), case.x)


@given(cases(), st.floats(0, 0.99))
def test_projection_does_not_change_points_inside(case: Case, share: float) -> None:
    inside = case.x + share * (case.threat.project(case.points, case.x) - case.x)
    assert (case.threat.project(inside, case.x) - inside).abs().max() <= rounding(case.threat)


@given(cases(norms=["linf", "l1"], dtype=torch.float64))
def test_projection_is_the_nearest_point(case: Case) -> None:
    """No other point of a convex set lies on the outer side of the plane through its nearest point."""
    nearest = case.threat.project(case.points, case.x)
    outwards = (case.points - nearest).flatten(1)
    noise = IndexedNoise(case.seed, torch.arange(len(case.x)))
    for scale in (0.01, 0.3, 1.0, 3.0):
        others = case.threat.project(nearest + scale * noise.normal(case.x), case.x)
        reach = (outwards * (others - nearest).flatten(1)).sum(1)
        assert (reach <= 1e-9 * (1 + outwards.norm(dim=1))).all()


def l1_projection(v: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """Nearest delta to v with sum |delta| <= radius and x + delta in [0, 1], by sorting breakpoints.

    The shrunk length is piecewise linear in the threshold, with corners where a size reaches zero (|v|) or
    stops being cut by the box (|v| - room); between the two corners around the radius it is interpolated.
    """
    size = np.abs(v)
    room = np.where(v > 0, 1 - x, x)

    def kept(threshold: float) -> np.ndarray:
        return np.minimum(np.maximum(size - threshold, 0), room)

    if kept(0).sum() <= radius:
        return np.sign(v) * kept(0)
    corners = np.unique(np.concatenate([[0.0], size.ravel(), np.maximum(size - room, 0).ravel()]))
    lengths = np.array([kept(corner).sum() for corner in corners])
    after = int(np.argmax(lengths <= radius))
    low, high = corners[after - 1], corners[after]
    share = (lengths[after - 1] - radius) / (lengths[after - 1] - lengths[after])
    return np.sign(v) * kept(low + share * (high - low))


@settings(max_examples=60)
@given(cases(norms=["l1"], dtype=torch.float64))
def test_l1_projection_is_the_one_by_sorting(case: Case) -> None:
    projected = case.threat.project(case.points, case.x)
    for point, x, found in zip(case.points.numpy(), case.x.numpy(), projected.numpy(), strict=True):
        expected = x + l1_projection(point - x, x, case.threat.radius)
        assert found == pytest.approx(expected, rel=0, abs=1e-9 * (1 + np.abs(point - x).max()))


@given(cases(norms=["l2"], dtype=torch.float64))
def test_l2_projection_shrinks_first_and_cuts_second(case: Case) -> None:
    for point, x, found in zip(
        case.points.numpy(), case.x.numpy(), case.threat.project(case.points, case.x).numpy(), strict=True
    ):
        length = np.sqrt(((point - x) ** 2).sum())
        shrunk = x + (point - x) * (min(1.0, case.threat.radius / length) if length else 1.0)
        assert found == pytest.approx(np.clip(shrunk, 0, 1), rel=0, abs=1e-12)


@given(cases())
def test_sample_is_inside_and_follows_the_noise(case: Case) -> None:
    index = torch.arange(len(case.x))
    sampled = case.threat.sample(case.x, IndexedNoise(case.seed, index))
    assert case.threat.contains(sampled, case.x).all()
    assert torch.equal(sampled, case.threat.sample(case.x, IndexedNoise(case.seed, index)))
    stream = StreamNoise.on(case.x.device)
    assert case.threat.contains(case.threat.sample(case.x, stream.reseed(case.seed)), case.x).all()


@given(cases(dtype=torch.float64))
def test_surface_uses_the_whole_radius_where_the_box_allows(case: Case) -> None:
    threat, direction = case.threat, case.points - case.x
    point = threat.surface(direction, case.x)
    assert threat.contains(point, case.x).all()
    gray = torch.full_like(case.x, 0.5)
    near = ThreatModel(threat.norm, min(threat.eps, Fraction(1, 2)))
    # In l1 what is longer than the radius loses its smallest pixels, so a shorter one shows the direction.
    short = direction * (near.radius / 3 / threat.size(direction)).view(-1, 1, 1, 1)
    delta = near.surface(short, gray) - gray
    assert torch.allclose(near.size(delta), torch.tensor(near.radius, dtype=torch.float64), rtol=0, atol=1e-10)
    assert torch.allclose(delta, 3 * short, rtol=0, atol=1e-10)
    assert torch.equal(near.surface(torch.zeros_like(gray), gray), gray)


class Slope(nn.Module):
    """The logit of class 1 is a linear function of each image, with a different gradient for each."""

    def __init__(self, grad: Tensor) -> None:
        super().__init__()
        self.grad = grad

    def forward(self, x: Tensor) -> Tensor:
        height = (x * self.grad).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(height), height], dim=1)


def one_step(norm: Norm, length: float, grad: Tensor, x: Tensor) -> Tensor:
    """The change of images by one attack step, far from the border of a wide threat set."""
    y = torch.zeros(len(x), dtype=torch.int64)
    attack = Pgd(steps=1, step_size=length, start="clean", loss="margin")
    wide = ThreatModel(norm, Fraction(1))
    return attack(Slope(grad), x, y, wide, IndexedNoise(0, torch.arange(len(x)))) - x


@given(cases(dtype=torch.float64))
def test_a_step_is_the_steepest_of_its_length(case: Case) -> None:
    """A step raises a linear function by its length times the dual norm of the gradient."""
    x = 0.4 + 0.2 * case.x
    grad = case.points - case.x
    grad[0, 0] = 0
    norm = case.threat.norm
    step = one_step(norm, 0.3, grad, x)
    assert (case.threat.size(step) <= 0.3 + 1e-12).all()
    assert (step[grad == 0].abs() < 1e-15).all()
    gain = (grad * step).flatten(1).sum(1)
    # Fewer than 150 pixels: the l1 step is a single one.
    dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    assert torch.allclose(gain, 0.3 * torch.linalg.vector_norm(grad.flatten(1), ord=dual, dim=1))


def test_l1_step_is_shared_by_a_hundredth_of_the_pixels() -> None:
    grad = torch.arange(300.0).view(1, 3, 10, 10) - 10
    step = one_step("l1", 0.3, grad, torch.full((1, 3, 10, 10), 0.5)).flatten()
    assert torch.equal(step.nonzero().flatten(), torch.tensor([297, 298, 299]))
    assert step[-3:].tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_is_no_step(norm: Norm) -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one_step(norm, 0.3, torch.zeros_like(x), x), torch.zeros_like(x))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 1), ("l2", 12), ("l1", 12), ("l1", 600)])
def test_no_perturbation_has_no_direction_to_the_surface(norm: Norm, eps: int) -> None:
    """Also if the radius is so large that its quotient by the smallest number is infinite."""
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ThreatModel(norm, Fraction(eps)).surface(torch.zeros_like(x), x), x)


@pytest.mark.parametrize("side", [8, 32, 96])
@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.001"), ("l2", "0.01"), ("l1", "0.06"), ("l1", "1")])
def test_projection_counts_as_inside_whatever_the_number_of_pixels(norm: Norm, eps: str, side: int) -> None:
    """Each pixel is rounded on its own, and an l1 or l2 length adds that up."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, side, side, generator=generator)
    threat = ThreatModel(norm, Fraction(eps))
    for scale in (1e-4, 1e-2, 1.0):
        points = x + scale * torch.randn(x.shape, generator=generator)
        assert threat.contains(threat.project(points, x), x).all()


def test_samples_of_the_cube_are_uniform() -> None:
    x = torch.full((400, 1, 8, 8), 0.5)
    delta = ThreatModel("linf", Fraction(1, 10)).sample(x, IndexedNoise(0, torch.arange(400))) - x
    counts = torch.histc(delta, bins=10, min=-0.1, max=0.1)
    assert counts.min() > 0.9 * delta.numel() / 10
    assert counts.max() < 1.1 * delta.numel() / 10


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_samples_of_the_ball_have_uniform_lengths(norm: Norm) -> None:
    x = torch.full((2000, 1, 8, 8), 0.5)
    threat = ThreatModel(norm, Fraction(1, 10))
    delta = threat.sample(x, IndexedNoise(0, torch.arange(2000))) - x
    lengths = threat.size(delta).sort().values / threat.radius
    even = (torch.arange(2000) + 0.5) / 2000
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed by one sample in a thousand.
    assert (lengths - even).abs().max() < 1.95 / 2000**0.5
    assert delta.mean(0).abs().max() < 0.002


@given(cases())
def test_surface_points_are_as_far_as_the_box_allows(case: Case) -> None:
    threat, index = case.threat, torch.arange(len(case.x))
    sampled = threat.sample_surface(case.x, IndexedNoise(case.seed, index))
    assert threat.contains(sampled, case.x).all()
    assert torch.equal(sampled, threat.sample_surface(case.x, IndexedNoise(case.seed, index)))


@pytest.mark.parametrize("norm", NORMS)
def test_surface_points_far_from_the_box_have_the_length_of_the_radius(norm: Norm) -> None:
    x = torch.full((2000, 1, 8, 8), 0.5)
    threat = ThreatModel(norm, Fraction(1, 10))
    delta = threat.sample_surface(x, IndexedNoise(0, torch.arange(2000))) - x
    assert threat.size(delta).tolist() == pytest.approx([0.1] * 2000, rel=1e-5)
    assert delta.mean(0).abs().max() < 0.008
    is_moved = (delta != 0).float().mean()
    assert (is_moved < 0.1) if norm == "l1" else (is_moved > 0.99)


@given(cases(norms=["l1"], dtype=torch.float64), st.floats(0, 1), st.floats(0.01, 3))
def test_a_sparse_step_moves_the_strongest_coordinates_evenly(case: Case, share: float, length: float) -> None:
    grad = case.points - case.x
    count, pixels = len(grad), grad[0].numel()
    step = case.threat.sparse_ascent(
        grad, torch.full((count,), share, dtype=grad.dtype), torch.full((count,), length, dtype=grad.dtype)
    )
    for one, slope in zip(step.flatten(1), grad.flatten(1), strict=True):
        moved = one != 0
        # A share is rounded down to the coordinates that it covers whole, and one is always moved.
        assert int(moved.sum()) == min(pixels, max(1, pixels - int((1 - share) * pixels)))
        assert torch.equal(one[moved].sign(), slope[moved].sign())
        assert one[moved].abs().tolist() == pytest.approx([length / int(moved.sum())] * int(moved.sum()))
        if not moved.all():
            assert slope[moved].abs().min() >= slope[~moved].abs().max()


def test_a_sparse_step_without_a_gradient_is_zero() -> None:
    grad = torch.zeros(2, 1, 3, 3)
    grad[0, 0, 1, 1] = -1
    step = ThreatModel("l1", Fraction(1)).sparse_ascent(grad, torch.full((2,), 0.5), torch.full((2,), 0.3))
    assert step.flatten().nonzero().flatten().tolist() == [4]
    assert float(step[0, 0, 1, 1]) == pytest.approx(-0.3)


@given(cases())
def test_contains_refuses_what_is_outside(case: Case) -> None:
    threat, x = case.threat, case.x
    outside = x.clone()
    outside[0, 0, 0, 0] += 1.01 * threat.radius + 1e-3
    assert not threat.contains(outside, x)[0]
    assert threat.contains(x, x).all()
    assert not threat.contains(torch.full_like(x, torch.nan), x).any()
    above = ThreatModel("linf", Fraction(1)).contains(torch.full_like(x, 1.001), torch.ones_like(x))
    assert not above.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", ["1/255", "1/10", "2/5"])
def test_contains_allows_for_rounding_and_no_more(norm: Norm, eps: str) -> None:
    """Perturbations of one pixel, which have the same size in every norm; the box has the same allowance."""
    threat = ThreatModel(norm, Fraction(eps))
    x = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    x[2:, 0, 0, 0] = torch.tensor([0.0, 1.0])
    outwards = torch.zeros_like(x)
    outwards[:, 0, 0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    border = x + outwards * torch.tensor([threat.radius, threat.radius, 0, 0], dtype=torch.float64).view(4, 1, 1, 1)
    assert threat.contains(border + 5e-7 * outwards, x).all()
    assert not threat.contains(border + 2e-5 * outwards, x).any()


@given(st.sampled_from(NORMS), st.floats(0, 2))
def test_scaled_has_a_share_of_the_radius(norm: Norm, share: float) -> None:
    threat = ThreatModel(norm, Fraction(8, 255))
    assert threat.scaled(share).radius == pytest.approx(threat.radius * min(1, share))
    assert threat.scaled(share).norm == norm
    assert threat.scaled(1) == threat


@pytest.mark.parametrize(
    ("norm", "eps", "expected"), [("linf", "1/4", "3/4"), ("linf", "1/2", "1"), ("l1", "12", "36")]
)
def test_widened_has_a_multiple_of_the_radius(norm: Norm, eps: str, expected: str) -> None:
    """The linf ball of radius 1 covers the box."""
    assert ThreatModel(norm, Fraction(eps)).widened(3) == ThreatModel(norm, Fraction(expected))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8), ("l2", -1), ("l0", 1)])
def test_impossible_threats_are_refused(norm: str, eps: int) -> None:
    with pytest.raises(RobustCliError, match=r"^threat\."):
        ThreatModel(norm, Fraction(eps))  # type: ignore[arg-type]


@given(cases(dtype=torch.float64), st.floats(0, 1))
def test_shrinking_leaves_a_share_of_the_distance_and_changes_no_sign(case: Case, share: float) -> None:
    shares = torch.full((len(case.x),), share, dtype=torch.float64)
    shrunk = case.threat.shrunk(case.points, case.x, shares)
    before, after = case.points - case.x, shrunk - case.x
    assert torch.allclose(case.threat.size(after), share * case.threat.size(before), rtol=1e-9, atol=1e-12)
    assert (after * before >= -1e-12).all()
    assert (after.abs() <= before.abs() + 1e-12).all()
    if case.threat.norm == "linf":
        # Pixels within the share do not move.
        is_near = before.abs() <= (share * case.threat.size(before)).view(-1, 1, 1, 1)
        assert torch.allclose(after[is_near], before[is_near], rtol=0, atol=1e-12)
    else:
        assert torch.allclose(after, share * before, rtol=0, atol=1e-12)
