"""AutoAttack with the package of its authors: calls, messages, and the check of its points."""

import logging
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pyautoattack
import pytest
import torch
from judging import noise, predictions, standing
from pyautoattack import AutoAttack as Ensemble
from torch import Tensor, nn

from robustcli.attacks.apgd import Apgd
from robustcli.attacks.fab import Fab
from robustcli.attacks.square import Square
from robustcli.errors import EvaluationError
from robustcli.evaluation.gather import gather
from robustcli.evaluators import AttackContext, autoattack_package
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

PACKAGE = AutoAttack(engine="reference")


def network(classes: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> nn.Module:
    """A random linear network, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    layer = nn.Linear(channels * height * width, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).eval()


def images(count: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 1) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


def said(
    evaluator: AutoAttack, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
) -> tuple[Tensor, list[str]]:
    """Survivors, and the warnings of the evaluator."""
    evidence = gather(evaluator, model, x, y, threat, rng)
    return evidence.survives, list(evidence.warnings)


class Small(Ensemble):
    """The package with tiny budgets, since these tests are about its calls and not its strength."""

    made: ClassVar[list["Small"]] = []

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 3
        self.fab.n_iter = 2
        self.square.n_queries = 4
        Small.made.append(self)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Small]]:
    Small.made = []
    monkeypatch.setattr(pyautoattack, "AutoAttack", Small)
    yield Small.made
    Small.made = []


def threat(norm: Norm, eps: str = "0.001") -> ThreatModel:
    return ThreatModel(norm, Fraction(eps))


class TestAutoAttack:
    @pytest.mark.parametrize(
        ("version", "classes", "attacks", "targets", "announced"),
        [
            ("standard", 2, ["apgd-ce", "fab", "square"], 1, "the DLR loss needs 3 classes and there are 2"),
            ("standard", 3, ["apgd-ce", "apgd-dlr", "fab-t", "square"], 2, "targeted DLR loss needs 4 classes"),
            ("standard", 4, ["apgd-ce", "apgd-t", "fab-t", "square"], 3, "apgd-t aims at 3 target classes"),
            ("standard", 9, ["apgd-ce", "apgd-t", "fab-t", "square"], 8, "fab-t aims at 8 target classes"),
            ("standard", 10, ["apgd-ce", "apgd-t", "fab-t", "square"], 9, ""),
            ("plus", 2, ["apgd-ce", "fab", "square"], 1, "instead of the published apgd-ce, apgd-dlr, fab"),
            ("plus", 3, ["apgd-ce", "apgd-dlr", "fab", "square", "fab-t"], 2, "targeted DLR loss needs 4"),
            ("rand", 2, ["apgd-ce"], 1, "the DLR loss needs 3"),
            ("rand", 3, ["apgd-ce", "apgd-dlr"], 2, ""),
        ],
    )
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_few_classes_run_and_are_announced(
        self,
        small: list[Small],
        norm: Norm,
        version: Any,
        classes: int,
        attacks: list[str],
        targets: int,
        announced: str,
    ) -> None:
        model, x = network(classes), images(6)
        y = predictions(model, x)
        survives, messages = said(AutoAttack(engine="reference", version=version), model, x, y, threat(norm), noise(6))
        assert survives.dtype == torch.bool
        assert survives.shape == (6,)
        (ensemble,) = small
        assert ensemble.attacks_to_run == attacks
        assert ensemble.fab.n_target_classes == targets
        published = 5 if version == "standard" and norm == "l1" else 9
        assert ensemble.apgd_targeted.n_target_classes == min(published, targets)
        if announced:
            assert any(announced in message for message in messages)
        elif not (version == "plus" and norm == "l1"):
            assert messages == []
        assert not any("possible" in message for message in messages)

    @pytest.mark.parametrize(
        ("version", "norm", "restarts"), [("standard", "linf", 1), ("standard", "l1", 5), ("plus", "l2", 5)]
    )
    def test_budgets_are_the_published_ones(self, small: list[Small], version: Any, norm: Norm, restarts: int) -> None:
        model, x = network(10), images(2)
        standing(
            AutoAttack(engine="reference", version=version), model, x, predictions(model, x), threat(norm), noise(2)
        )
        (ensemble,) = small
        assert ensemble.apgd.n_restarts == restarts
        assert ensemble.apgd.use_largereps is (norm == "l1" and version == "standard")
        assert ensemble.apgd_targeted.n_restarts == 1
        assert ensemble.epsilon == 0.001
        # "fab-t", which comes last, leaves 1 behind in every version.
        assert ensemble.fab.n_restarts == 1

    @pytest.mark.parametrize(
        ("version", "norm"),
        [(version, norm) for version in ("standard", "plus", "rand") for norm in ("linf", "l2", "l1")],
    )
    @pytest.mark.filterwarnings("ignore:version 'plus' has no published settings for l1")
    def test_the_native_engine_has_the_budgets_of_the_package(self, version: Any, norm: Norm) -> None:
        package = Ensemble(
            nn.Identity(), norm={"linf": "Linf"}.get(norm, norm.upper()), eps=0.1, version=version, device="cpu"
        )
        stages = AutoAttack(version=version).stages(AttackContext(threat(norm), (3, 32, 32), 10))
        assert [stage.name for stage in stages] == package.attacks_to_run
        for name, attack in ((stage.name, stage.attack) for stage in stages):
            if isinstance(attack, Apgd):
                theirs = package.apgd_targeted if name == "apgd-t" else package.apgd
                assert (attack.steps, attack.restarts) == (theirs.n_iter, theirs.n_restarts)
                assert name != "apgd-t" or attack.targets == theirs.n_target_classes
                assert attack.gradients == package.apgd.eot_iter
                assert (attack.radius == "shrinking") == package.apgd.use_largereps
            elif isinstance(attack, Fab):
                # The package sets the restarts of "fab-t" to 1 when it comes to it.
                assert (attack.steps, attack.restarts) == (
                    package.fab.n_iter,
                    1 if name == "fab-t" else package.fab.n_restarts,
                )
                assert attack.targets == (package.fab.n_target_classes if name == "fab-t" else 0)
            else:
                assert isinstance(attack, Square)
                assert (attack.queries, attack.restarts, attack.p_init) == (
                    package.square.n_queries,
                    package.square.n_restarts,
                    package.square.p_init,
                )

    def test_plus_in_l1_is_announced(self, small: list[Small]) -> None:
        model, x = network(10), images(2)
        plus = AutoAttack(engine="reference", version="plus")
        _, messages = said(plus, model, x, predictions(model, x), threat("l1"), noise(2))
        assert any("no published settings for l1" in message for message in messages)

    @pytest.mark.parametrize("shape", [(3, 4, 4), (1, 12, 12), (1, 24, 24)])
    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_square_is_left_out_where_it_cannot_run(
        self, small: list[Small], norm: Norm, shape: tuple[int, int, int]
    ) -> None:
        model, x = network(10, shape), images(3, shape)
        _, messages = said(PACKAGE, model, x, predictions(model, x), threat(norm), noise(3))
        assert any(
            f"Square attack cannot run on {shape[1]}x{shape[2]} images in {norm}" in message for message in messages
        )
        assert "square" not in small[0].attacks_to_run

    @pytest.mark.parametrize("shape", [(3, 4, 4), (1, 12, 12)])
    def test_square_stays_in_linf(self, small: list[Small], shape: tuple[int, int, int]) -> None:
        model, x = network(10, shape), images(3, shape)
        standing(PACKAGE, model, x, predictions(model, x), threat("linf"), noise(3))
        assert "square" in small[0].attacks_to_run

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_tiles_fit_exactly_where_the_package_runs(self, norm: Norm) -> None:
        def is_running(height: int, width: int) -> bool:
            def flat(x: Tensor) -> Tensor:
                return torch.zeros(len(x), 2) + torch.tensor([1.0, 0.0])

            ensemble = Ensemble(flat, norm=norm.upper(), eps=0.1, seed=0, device="cpu")
            ensemble.square.n_queries = 1
            try:
                ensemble.square.perturb(torch.full((1, 1, height, width), 0.5), torch.zeros(1, dtype=torch.int64))
            except (RuntimeError, ZeroDivisionError):
                return False
            return True

        sizes = [(h, w) for h in (1, 4, 5, 8, 12, 14, 16, 19, 24, 28, 32) for w in (h, h + 1, 2 * h)]
        expected = {size: autoattack_package._tiles_fit(*size) for size in sizes}
        assert {size: is_running(*size) for size in sizes} == expected

    def test_channels_last_images_run(self, small: list[Small]) -> None:
        shape = (3, 8, 8)
        model, x = network(10, shape), images(4, shape).to(memory_format=torch.channels_last)
        for norm in ("linf", "l2", "l1"):
            standing(PACKAGE, model, x, predictions(model, x), threat(norm), noise(4))

    def test_batches_of_one(self, small: list[Small]) -> None:
        model, x = network(10), images(3)
        standing(
            AutoAttack(engine="reference", batch_size=1), model, x, predictions(model, x), threat("linf"), noise(3)
        )
        standing(PACKAGE, model, x[:1], predictions(model, x[:1]), threat("linf"), noise(1))

    def test_without_a_correct_clean_prediction_no_image_survives(self, small: list[Small]) -> None:
        model, x = network(10), images(3)
        survives = standing(PACKAGE, model, x, (predictions(model, x) + 1) % 10, threat("linf"), noise(3))
        assert not survives.any()
        assert small == []

    def test_the_package_sees_only_right_images(self, small: list[Small]) -> None:
        model, x = network(10), images(4)
        y = predictions(model, x)
        y[1] = (y[1] + 1) % 10
        survives = standing(PACKAGE, model, x, y, threat("linf", "0.0000001"), noise(4))
        assert survives.tolist() == [True, False, True, True]

    def test_every_image_breaks_at_a_large_radius(self, small: list[Small]) -> None:
        model, x = network(10), images(4)
        assert not standing(PACKAGE, model, x, predictions(model, x), threat("linf", "0.5"), noise(4)).any()

    def test_radius_zero_is_clean_accuracy(self, small: list[Small]) -> None:
        model, x = network(10), images(4)
        assert standing(PACKAGE, model, x, predictions(model, x), threat("l1", "0"), noise(4)).all()
        assert small == []

    def test_seed_reaches_the_package(self, small: list[Small]) -> None:
        model, x = network(10), images(2)
        standing(PACKAGE, model, x, predictions(model, x), threat("linf"), noise(2, seed=17))
        assert (small[0].seed, small[0].apgd.seed, small[0].square.seed) == (17, 17, 17)

    def test_process_and_model_are_unchanged(self, small: list[Small]) -> None:
        model, x = network(10), images(4)
        y = predictions(model, x)
        model(x).sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        # A model may draw from numpy where the package does not.
        model.register_forward_hook(lambda *_: np.random.rand() and None)
        with _watched_process():
            standing(PACKAGE, model, x, y, threat("linf"), noise(4))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert parameter.requires_grad
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)

    @pytest.mark.parametrize("calls", [1, 4, 9, 30])
    def test_process_and_model_are_unchanged_after_an_error(self, small: list[Small], calls: int) -> None:
        class Failing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network(10)
                self.left = calls

            def forward(self, x: Tensor) -> Tensor:
                if self.left == 0:
                    raise OSError("no more")
                self.left -= 1
                logits: Tensor = self.inner(x)
                return logits

        model, x = Failing().eval(), images(4)
        y = predictions(model.inner, x)
        with _watched_process(), pytest.raises(OSError, match="no more"):
            standing(PACKAGE, model, x, y, threat("linf"), noise(4))
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert logging.getLogger("auto-attack").filters == []

    def test_one_dynamic_model_does_not_mark_the_next(self, small: list[Small]) -> None:
        class Dynamic(nn.Module):
            """Computes a gradient in every forward, like defenses that optimize at test time."""

            def __init__(self) -> None:
                super().__init__()
                self.inner = network(10)

            def forward(self, x: Tensor) -> Tensor:
                with torch.enable_grad():
                    probe = torch.ones(1, requires_grad=True)
                    torch.autograd.grad((2 * probe).sum(), probe)
                logits: Tensor = self.inner(x)
                return logits

        x = images(2)
        for model, is_flagged in ((Dynamic().eval(), True), (network(10), False)):
            y = predictions(model, x)
            _, messages = said(PACKAGE, model, x, y, threat("linf"), noise(2))
            assert any("dynamic defense" in message for message in messages) == is_flagged

    def test_flags_become_warnings_and_are_not_printed(
        self, small: list[Small], caplog: pytest.LogCaptureFixture
    ) -> None:
        model = nn.Sequential(network(10), nn.Softmax(1)).eval()
        x = images(6)
        y = predictions(model, x)
        with caplog.at_level(logging.DEBUG):
            _, messages = said(
                AutoAttack(engine="reference", batch_size=2), model, x, y, threat("linf", "0.0000001"), noise(6)
            )
        assert len([message for message in messages if "probability distribution" in message]) == 1
        assert not any("flags_doc" in message for message in messages)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    def test_flags_are_heard_when_the_logger_is_silenced(self, small: list[Small]) -> None:
        logger = logging.getLogger("auto-attack")
        level, is_disabled = logger.level, logger.disabled
        model, x = nn.Sequential(network(10), nn.Softmax(1)).eval(), images(2)
        y = predictions(model, x)
        try:
            logger.setLevel(logging.CRITICAL)
            logger.disabled = True
            _, messages = said(PACKAGE, model, x, y, threat("linf"), noise(2))
            assert logger.level == logging.CRITICAL
            assert logger.disabled
        finally:
            logger.setLevel(level)
            logger.disabled = is_disabled
        assert any("probability distribution" in message for message in messages)

    def test_zero_gradients_are_one_warning(self, small: list[Small]) -> None:
        class Staircase(nn.Module):
            """Logits of rounded pixels: almost no gradient anywhere."""

            def __init__(self) -> None:
                super().__init__()
                self.inner = network(10)

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.inner((8 * x).round() / 8 + 0 * x)
                return logits

        model, x = Staircase().eval(), images(6)
        y = predictions(model, x)
        _, messages = said(AutoAttack(engine="reference", batch_size=4), model, x, y, threat("linf"), noise(6))
        assert len([message for message in messages if "gradient of the DLR loss was exactly zero" in message]) == 1

    def test_messages_are_translated_once(self) -> None:
        square = "Square Attack has decreased the robust accuracy of 12.50%. This might indicate that"
        spoken = [
            "there are 3 points with zero gradient! This might",
            "there are 5 points with zero gradient! This might",
            "with only 3 classes it is not possible to use the targeted DLR loss!",
            square,
            square,
            "something new See flags_doc.md for details.",
        ]
        text = list(autoattack_package._translated(spoken))
        assert len(text) == 3
        assert "12.50%" in text[0]
        assert text[1] == "something new"
        assert "up to 5 images" in text[2]

    def test_logits_in_the_models_own_storage_survive(self, small: list[Small]) -> None:
        class Constant(nn.Module):
            """Returns its buffer, into which Square writes."""

            table: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("table", torch.arange(10.0).repeat(3, 1))

            def forward(self, x: Tensor) -> Tensor:
                return self.table[: len(x)] + 0 * x.sum((1, 2, 3))[:, None] if x.requires_grad else self.table[: len(x)]

        model, x = Constant().eval(), images(3)
        survives, _ = said(PACKAGE, model, x, torch.full((3,), 9, dtype=torch.int64), threat("linf"), noise(3))
        assert survives.all()
        assert torch.equal(model.table, torch.arange(10.0).repeat(3, 1))

    def test_a_random_model_repeats_with_its_seed(self, small: list[Small]) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = network(10)

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.inner(x + 0.3 * torch.randn_like(x))
                return logits

        model, x = Noisy().eval(), images(20)
        y = predictions(model.inner, x)
        rand = AutoAttack(engine="reference", version="rand")
        assert (rand.votes, PACKAGE.votes) == (10, 1)
        masks = []
        for draws in (0, 1):
            torch.rand(draws)
            masks.append(
                standing(
                    AutoAttack(engine="reference", version="rand"), model, x, y, threat("linf"), noise(20)
                ).tolist()
            )
        assert masks[0] == masks[1]
        assert 0 < sum(masks[0]) < 20

    @pytest.mark.parametrize(
        ("shift", "message"),
        [(0.02, "1 of 4 adversarial images lie outside"), (float("nan"), "1 of 4 .* not finite")],
    )
    def test_points_outside_are_refused(self, monkeypatch: pytest.MonkeyPatch, shift: float, message: str) -> None:
        monkeypatch.setattr(pyautoattack, "AutoAttack", _returning(shift))
        model, x = network(10), images(4).clamp(0.1, 0.9)
        with pytest.raises(EvaluationError, match=f"attack package: {message}"):
            standing(PACKAGE, model, x, predictions(model, x), threat("linf", "0.01"), noise(4))

    def test_points_that_overshoot_by_rounding_are_projected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pyautoattack, "AutoAttack", _returning(0.01 * 1.001))
        model, x = network(10), images(4).clamp(0.1, 0.9)
        y = predictions(model, x)
        survives, messages = said(PACKAGE, model, x, y, threat("linf", "0.01"), noise(4))
        assert any("1 adversarial images lay outside the threat set linf 0.01 by rounding" in m for m in messages)
        # A break counts only if our own forward confirms it.
        assert survives.all()

    def test_a_break_that_the_package_does_not_report_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Hiding(Small):
            def run_standard_evaluation(self, x: Tensor, y: Tensor, /, **settings: Any) -> tuple[Tensor, Tensor]:
                x_adv, _ = super().run_standard_evaluation(x, y, **settings)
                return x_adv, y

        monkeypatch.setattr(pyautoattack, "AutoAttack", Hiding)
        model, x = network(10), images(4)
        assert not standing(PACKAGE, model, x, predictions(model, x), threat("linf", "0.5"), noise(4)).any()


def _returning(shift: float) -> type[Small]:
    class Returning(Small):
        """Claims to break the first image, at a distance of `shift` in every pixel, and does not move the others."""

        def run_standard_evaluation(self, x: Tensor, y: Tensor, /, **settings: Any) -> tuple[Tensor, Tensor]:
            x_adv, y_adv = x.clone(), y.clone()
            x_adv[0] += shift
            y_adv[0] = (y[0] + 1) % 10
            return x_adv, y_adv

    return Returning


class _watched_process:
    """Fail if global generators or the tracer have changed."""

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self.tracer)
        self.torch_state = torch.get_rng_state()
        self.numpy_state = np.random.get_state()

    def tracer(self, frame: Any, event: str, arg: Any) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        found = sys.gettrace()
        sys.settrace(self.before)
        assert found == self.tracer
        assert torch.equal(torch.get_rng_state(), self.torch_state)
        assert np.array_equal(np.random.get_state()[1], self.numpy_state[1])
