"""APGD follows its settings, has the declared cost, and does not depend on the batch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcli.attacks.adaptive_steps import MomentumRule, PointStates, SparseRule
from robustcli.attacks.apgd import Apgd
from robustcli.attacks.losses import targeted_dlr
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.errors import RobustCliError
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

COUNT = 12
# Some images are broken there at once, some late and some never.
RADII: dict[Norm, Fraction] = {"linf": Fraction(1, 200), "l2": Fraction(1, 40), "l1": Fraction(3, 20)}
NORMS: list[Norm] = ["linf", "l2", "l1"]


def threat(norm: Norm) -> ThreatModel:
    return ThreatModel(norm, RADII[norm])


def noise(count: int = COUNT, seed: int = 0) -> IndexedNoise:
    return IndexedNoise(seed, torch.arange(count))


def setting(seed: int = 0, classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in double precision, images and the labels that it gives them."""
    model = conv_net(classes=classes, seed=seed % 3, dtype=torch.float64).eval()
    x = images(COUNT, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def is_fooled(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(x_adv).argmax(1) != y)


@contextmanager
def passes(model: nn.Module) -> Iterator[tuple[list[int], list[int]]]:
    """Numbers of examples of each forward and of each gradient."""
    forwards: list[int] = []
    gradients: list[int] = []

    def count(_module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        forwards.append(len(inputs[0]))
        if logits.requires_grad:
            logits.register_hook(lambda grad: gradients.append(len(grad)))

    hook = model.register_forward_hook(count)
    try:
        yield forwards, gradients
    finally:
        hook.remove()


class TestCost:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("loss", ["ce", "dlr"])
    def test_every_image_pays_for_the_points_that_it_saw(self, norm: Norm, loss: Any) -> None:
        """An image broken after i moves costs i + 1 forwards; a survivor costs steps + 1, the last without gradient."""
        model, x, y = setting()
        with passes(model) as (forwards, gradients):
            found = Apgd(steps=20, loss=loss)(model, x, y, threat(norm), noise())
        fooled = is_fooled(model, found, y)
        assert 0 < int(fooled.sum()) < COUNT
        assert forwards == sorted(forwards, reverse=True), "an image came back"
        assert forwards[0] == COUNT
        assert len(forwards) == 21
        assert forwards[-1] >= int((~fooled).sum())
        assert gradients == forwards[:-1], "the last point needs no gradient, every other one a single pass"

    @pytest.mark.parametrize(("targets", "runs"), [(1, 1), (3, 3), (9, 9), (20, 9)])
    def test_targets_share_one_clean_pass_and_end_with_the_classes(self, targets: int, runs: int) -> None:
        model, x, y = setting()
        nowhere = ThreatModel("linf", Fraction(1, 10**9))
        with passes(model) as (forwards, _):
            Apgd(steps=3, loss="targeted_dlr", targets=targets)(model, x, y, nowhere, noise())
        assert sum(forwards) == COUNT + runs * COUNT * 4

    @pytest.mark.parametrize("size", [1, 5, COUNT, 40])
    def test_passes_are_full_as_long_as_there_is_work(self, size: int) -> None:
        model, x, y = setting()
        nowhere = ThreatModel("linf", Fraction(1, 10**9))
        with passes(model) as (forwards, _):
            Apgd(steps=3, restarts=5, batch_size=size)(model, x, y, nowhere, noise())
        assert sum(forwards) == 5 * COUNT * 4
        assert forwards.count(size) * size >= sum(forwards) - 4 * (5 * COUNT % size)

    def test_broken_images_leave_and_others_take_their_room(self) -> None:
        model, x, y = setting()
        wide = ThreatModel("linf", Fraction(1, 2))
        with passes(model) as (forwards, _):
            found = Apgd(batch_size=3, restarts=50)(model, x, y, wide, noise())
        assert is_fooled(model, found, y).all()
        assert sum(forwards) < 10 * COUNT

    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_gradients_are_averaged(self, count: int) -> None:
        model, x, y = setting()
        nowhere = ThreatModel("l2", Fraction(1, 10**9))
        with passes(model) as (forwards, gradients):
            Apgd(steps=4, gradients=count)(model, x, y, nowhere, noise())
        assert sum(gradients) == COUNT * 4 * count
        assert sum(forwards) == COUNT * 5 * count


class TestBatches:
    @given(
        st.sampled_from(NORMS),
        st.sampled_from(["ce", "dlr", "margin", "targeted_dlr"]),
        st.sampled_from(["fixed", "shrinking"]),
        st.integers(1, 2),
        st.integers(0, 50),
        st.integers(1, 3 * COUNT),
        st.integers(1, COUNT),
    )
    @pytest.mark.slow
    def test_the_batch_changes_nothing(
        self, norm: Norm, loss: Any, radius: Any, restarts: int, seed: int, size: int, part_size: int
    ) -> None:
        """Returned points depend neither on the size of a pass nor on the other images or their order."""
        model, x, y = setting(seed)
        attack = Apgd(steps=6, loss=loss, targets=3, restarts=restarts, radius=radius)
        # One run after the other, since a pass fits only one.
        together = torch.cat(
            [
                attack(model, x[part], y[part], threat(norm), IndexedNoise(seed, part))
                for part in torch.arange(COUNT).split(1)
            ]
        )
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
        narrow = Apgd(steps=6, loss=loss, targets=3, restarts=restarts, radius=radius, batch_size=size)
        for part in order.split(part_size):
            alone = narrow(model, x[part], y[part], threat(norm), IndexedNoise(seed, part))
            assert torch.allclose(alone, together[part], rtol=0, atol=1e-9)

    def test_no_images(self) -> None:
        model, x, y = setting()
        for loss in ("ce", "targeted_dlr"):
            attack = Apgd(steps=2, loss=loss)  # type: ignore[arg-type]
            assert attack(model, x[:0], y[:0], threat("l1"), noise(0)).shape == (0, 1, 8, 8)


class TestSearch:
    @pytest.mark.parametrize("norm", NORMS)
    def test_more_restarts_never_find_less(self, norm: Norm) -> None:
        model, x, y = setting()

        def loss(restarts: int) -> Tensor:
            found = Apgd(steps=6, restarts=restarts)(model, x, y, threat(norm), noise())
            with torch.no_grad():
                losses = nn.functional.cross_entropy(model(found), y, reduction="none")
            return losses.where(~is_fooled(model, found, y), torch.tensor(torch.inf, dtype=torch.float64))

        one, four = loss(1), loss(4)
        assert (four >= one - 1e-12).all()
        assert (four > one).any()

    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("radius", ["fixed", "shrinking"])
    def test_raises_the_loss_of_every_image(self, norm: Norm, radius: Any) -> None:
        model, x, y = setting()
        found = Apgd(radius=radius)(model, x, y, threat(norm), noise())
        with torch.no_grad():
            before, after = (nn.functional.cross_entropy(model(points), y, reduction="none") for points in (x, found))
        assert (after > before).all()

    def test_what_is_wrong_at_the_start_costs_one_pass(self) -> None:
        model, x, y = setting()
        with passes(model) as (forwards, _):
            Apgd()(model, x, (y + 5) % 10, ThreatModel("linf", Fraction(1, 10**6)), noise())
        assert forwards == [COUNT]

    def test_the_earliest_run_that_breaks_an_image_gives_its_point(self) -> None:
        """Also where a later run in the same passes breaks the image in fewer moves."""
        seen: list[Tensor] = []

        class Scripted(nn.Module):
            """The second of two points is wrong in the second pass, the first one in the third."""

            def forward(self, x: Tensor) -> Tensor:
                seen.append(x.detach().clone())
                wrong = {2: [-1.0, 1.0], 3: [1.0], 4: [1.0]}.get(len(seen), [-1.0] * len(x))
                return torch.stack([0 * x.sum((1, 2, 3)), torch.tensor(wrong) + 1e-3 * x.sum((1, 2, 3))], 1)

        attack = Apgd(steps=5, restarts=3, batch_size=2)
        found = attack(Scripted(), images(1) / 100, torch.tensor([0]), threat("linf"), noise(1))
        # The third run never begins: the second has broken the image by then.
        assert [len(points) for points in seen] == [2, 2, 1]
        assert torch.equal(found, seen[2])

    def test_a_point_that_fools_some_passes_of_a_random_model_ends_no_search(self) -> None:
        calls: list[Tensor] = []

        class Alternating(nn.Module):
            """Wrong in every pass except each third."""

            def forward(self, x: Tensor) -> Tensor:
                calls.append(x)
                sign = 1.0 if len(calls) % 3 == 0 else -1.0
                return torch.stack([sign + 0 * x.sum((1, 2, 3)), x.sum((1, 2, 3)) * 1e-6], 1)

        Apgd(steps=2, gradients=3)(
            Alternating(), images(2), torch.zeros(2, dtype=torch.int64), threat("linf"), noise(2)
        )
        # Two of three are wrong, before each of both moves and after the last one.
        assert len(calls) == 9


class TestLosses:
    @pytest.mark.parametrize(("loss", "classes", "needed"), [("dlr", 2, 3), ("targeted_dlr", 3, 4)])
    def test_too_few_classes_are_an_error(self, loss: Any, classes: int, needed: int) -> None:
        model, x, y = setting(classes=classes)
        with pytest.raises(RobustCliError, match=f"'{loss}' needs at least {needed} classes, the model has {classes}"):
            Apgd(loss=loss)(model, x, y, threat("linf"), noise())
        enough, x, y = setting(classes=needed)
        Apgd(loss=loss, steps=2)(enough, x, y, threat("linf"), noise())

    def test_targeted_dlr_is_its_formula(self) -> None:
        logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y, target = labels(7, 6), labels(7, 6, seed=3)
        found = targeted_dlr(logits, torch.stack([y, target], 1))
        for row, value in enumerate(found.tolist()):
            first, _, third, fourth, *_ = sorted(logits[row].tolist(), reverse=True)
            expected = (logits[row, target[row]] - logits[row, y[row]]) / (first - (third + fourth) / 2 + 1e-12)
            assert math.isclose(value, float(expected), rel_tol=1e-12)

    def test_targets_are_the_most_likely_wrong_classes_of_the_clean_image(self) -> None:
        """With one target, the loss is the lead of the runner-up."""

        class Linear(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1) @ torch.eye(64, dtype=x.dtype)[:, :6] + torch.arange(6.0, 0, -1, dtype=x.dtype)

        x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
        y = torch.tensor([0])
        for targets in (1, 2, 3):
            found = Apgd(steps=1, loss="targeted_dlr", targets=targets)(
                Linear(), x, y, ThreatModel("linf", Fraction(1, 10)), noise(1)
            )
            changed = (found - x).flatten()
            # The first target leads with the least, so its point has the highest loss of all.
            assert changed[0] < 0
            assert changed[1] > 0

    def test_gradients_of_zero_are_announced(self) -> None:
        class Staircase(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                ones = torch.ones_like(x.sum((1, 2, 3)))
                return torch.stack([3 * ones, 2 * ones, ones, 0 * ones + 0 * x.sum((1, 2, 3))], 1)

        y = torch.zeros(COUNT, dtype=torch.int64)
        for loss in ("dlr", "targeted_dlr"):
            attack = Apgd(steps=2, loss=loss, targets=1)  # type: ignore[arg-type]
            with pytest.warns(UserWarning, match="exactly zero at starts of APGD"):
                attack(Staircase(), images(COUNT), y, threat("linf"), noise())
        # Cross-entropy is flat where a model is very confident, which is not suspicious.
        Apgd(steps=2)(Staircase(), images(COUNT), y, threat("linf"), noise())


class TestRules:
    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            (100, [22, 41, 57, 70, 80, 87, 93, 99]),
            (10, [2, 3, 4, 5, 6, 7, 8, 9, 10]),
            (1, [1]),
            (0, []),
        ],
    )
    def test_checkpoints_come_where_they_are_published(self, steps: int, expected: list[int]) -> None:
        rule = MomentumRule(threat("linf"), steps)
        assert rule.periods.nonzero().flatten().tolist() == expected
        assert len(rule.periods) == steps + 1
        # The distance to the point before.
        assert rule.periods[rule.periods > 0].cumsum(0).tolist() == expected

    def test_sparse_checkpoints(self) -> None:
        rule = SparseRule(threat("l1"), 100, has_start=False)
        assert rule.periods.nonzero().flatten().tolist() == list(range(4, 101, 4))
        assert SparseRule(threat("l1"), 3, has_start=True).periods.tolist() == [0, 1, 1, 1]

    def rows(self, count: int) -> PointStates:
        x = images(count)
        return PointStates.beginning(x, labels(count), labels(count), x)

    def test_a_step_is_halved_where_the_loss_rose_in_three_quarters_of_the_steps_or_fewer(self) -> None:
        rows, rule = self.rows(4), MomentumRule(threat("linf"), 100)
        rule.begin(rows)
        rows.rises = torch.tensor([15, 16, 17, 15])
        rows.best = torch.zeros_like(rows.x)
        rule.adapt(rows, torch.tensor([20, 20, 20, 0]))
        eps = threat("linf").radius
        assert rows.step_size.tolist() == pytest.approx([eps, 2 * eps, 2 * eps, 2 * eps])
        assert [bool((point == 0).all()) for point in rows.point] == [True, False, False, False]
        assert rows.rises.tolist() == [0, 0, 0, 15]

    def test_a_step_is_halved_where_the_best_loss_stayed_and_the_step_was_kept_before(self) -> None:
        rows, rule = self.rows(3), MomentumRule(threat("linf"), 100)
        rule.begin(rows)
        rows.rises = torch.full((3,), 22)
        rows.best_loss = torch.ones(3)
        rule.adapt(rows, torch.full((3,), 22))
        kept = rows.step_size.clone()
        # The loss rose in all steps, and so did the best loss of the second run.
        rows.rises = torch.full((3,), 19)
        rows.best_loss = torch.tensor([1.0, 1.5, 1.0])
        rows.was_reduced = torch.tensor([False, False, True])
        rule.adapt(rows, torch.full((3,), 19))
        assert (rows.step_size / kept).tolist() == [0.5, 1.0, 1.0]
