import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from judging import predictions
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.pgd import Pgd
from robustcli.errors import EvaluationError
from robustcli.evaluation.evaluate import Result, evaluate
from robustcli.evaluation.gather import gather
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.preflight import preflight
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.clean import Clean
from robustcli.evaluators.randomized_smoothing import RandomizedSmoothing
from robustcli.evaluators.worst_case import WorstCase
from robustcli.runtime.precision import full_precision, tf32_in_use
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

LINF = ThreatModel("linf", Fraction(8, 255))


class Net(nn.Module):
    """A convolution, a batch norm and a linear layer, with seeded weights."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(3 * 36, classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.conv(x)).relu().flatten(1))
        return logits


class Changed(nn.Module):
    """A good network whose logits are changed by a function of (x, logits)."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net = Net()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x, self.net(x))


def images(count: int) -> Tensor:
    return torch.rand((count, 1, 6, 6), generator=torch.Generator().manual_seed(1))


class TestPreflight:
    def test_a_good_model_passes_in_silence(self) -> None:
        model, x = Net().eval(), images(20)
        preflight(model, x, predictions(model, x), LINF)
        preflight(model, x[:1], predictions(model, x[:1]), LINF)

    def test_train_mode_names_the_modules(self) -> None:
        model, x = Net().eval(), images(20)
        y = predictions(model, x)
        model.norm.train()
        with pytest.raises(EvaluationError, match=r"1 modules are in train mode \(norm\)"):
            preflight(model, x, y, LINF)
        with pytest.raises(EvaluationError, match=r"4 modules are in train mode \(Net, conv, norm, \.\.\.\)"):
            preflight(model.train(), x, y, LINF)
        assert torch.equal(model.norm.running_mean, torch.zeros(3))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: 2 * x - 1, r"x: pixels from -\S+ to \S+; expected \[0, 1\]: normalization belongs inside"),
            (lambda x: 255 * x, "expected .*0, 1"),
            (lambda x: x.masked_fill(x > 0.9, torch.nan), "pixels from nan to nan"),
            (lambda x: x.double(), r"x: torch\.float64; expected torch\.float32"),
            (lambda x: (255 * x).to(torch.uint8), r"x: torch\.uint8; expected torch\.float32"),
            (lambda x: x.flatten(1), r"x: shape \(8, 36\); expected \(n, c, h, w\)"),
        ],
    )
    def test_images_that_are_not_pixels_are_refused(self, change: Callable[[Tensor], Tensor], message: str) -> None:
        model, x = Net().eval(), images(8)
        with pytest.raises(EvaluationError, match=message):
            preflight(model, change(x), predictions(model, x), LINF)

    def test_no_images_are_refused(self) -> None:
        with pytest.raises(EvaluationError, match="no images"):
            preflight(Net().eval(), images(0), torch.zeros(0, dtype=torch.int64), LINF)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda y: y.int(), r"y: torch\.int32 of shape \(8,\)"),
            (lambda y: y[:-1], r"of shape \(7,\) for 8 images"),
            (lambda y: y.clone().fill_(4), "labels from 4 to 4, but the model has 4 logits"),
            (lambda y: y - 10, "expected labels from 0 to 3"),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, change: Callable[[Tensor], Tensor], message: str) -> None:
        model, x = Net().eval(), images(8)
        with pytest.raises(EvaluationError, match=message):
            preflight(model, x, change(predictions(model, x)), LINF)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, z: z[:, :1], r"returned \(8, 1\) for 8 images; expected logits of shape \(8, k\)"),
            (lambda x, z: z[0], r"returned \(4,\) for 8 images"),
            (lambda x, z: (z, z), "returned tuple for 8 images"),
            (lambda x, z: z.half(), r"logits are torch\.float16"),
            (lambda x, z: z.index_fill(0, torch.tensor([2]), torch.nan), "not finite on 1 of the first 8"),
            (lambda x, z: z + torch.rand_like(z), "two equal calls give logits that differ"),
            (lambda x, z: z + 1e-3 * torch.randn_like(z) * z.abs().max(), "version 'rand'"),
            (lambda x, z: z - z.mean(0), "change by .* with the images next to it"),
            (lambda x, z: z + torch.arange(len(z))[:, None], "accuracy would depend on the batch"),
            (lambda x, z: z + (x[0].mean() > x[-1].mean()), "with the images next to it"),
        ],
    )
    def test_bad_models_are_refused(self, change: Callable[[Tensor, Tensor], Any], message: str) -> None:
        model, x = Changed(change).eval(), images(8)
        y = predictions(model.net, x)
        with pytest.raises(EvaluationError, match=message):
            preflight(model, x, y, LINF)

    def test_a_random_model_cannot_hide_in_its_own_storage(self) -> None:
        storage = torch.zeros(8, 4)

        def redraw(x: Tensor, logits: Tensor) -> Tensor:
            return storage[: len(x)].copy_(torch.rand_like(logits))

        x = images(8)
        with pytest.raises(EvaluationError, match="two equal calls"):
            preflight(Changed(redraw).eval(), x, torch.zeros(8, dtype=torch.int64), LINF)

    def test_batch_statistics_in_eval_mode_are_refused(self) -> None:
        model = Net()
        model.norm = nn.BatchNorm2d(3, track_running_stats=False)
        x = images(8)
        with pytest.raises(EvaluationError, match="Batch norms without running statistics"):
            preflight(model.eval(), x, predictions(model, x), LINF)

    def test_rounding_between_batches_is_allowed(self) -> None:
        model, x = Changed(lambda x, z: z + 1e-6 * z.abs().max() * len(x) / 8).eval(), images(8)
        preflight(model, x, predictions(model, x), LINF)

    def test_a_random_model_passes_where_it_is_expected(self) -> None:
        model, x = Changed(lambda x, z: z + torch.rand_like(z)).eval(), images(8)
        preflight(model, x, predictions(model, x), LINF, allows_randomness=True)

    def test_probabilities_are_a_warning(self) -> None:
        model, x = Changed(lambda x, z: z.softmax(1)).eval(), images(8)
        with pytest.warns(UserWarning, match="look like probabilities"):
            preflight(model, x, predictions(model, x), LINF)

    @pytest.mark.parametrize(("norm", "eps"), [("linf", "1/2"), ("l2", "8"), ("l1", "18")])
    def test_a_radius_that_reaches_everything_is_a_warning(self, norm: Any, eps: str) -> None:
        model, x = Net().eval(), images(8)
        with pytest.warns(UserWarning, match="uniform gray"):
            preflight(model, x, predictions(model, x), ThreatModel(norm, Fraction(eps)))

    def test_tensors_on_two_devices_are_refused(self) -> None:
        model, x = Net().eval(), images(8)
        y = predictions(model, x)
        with pytest.raises(EvaluationError, match="x is on cpu, but the model is on meta"):
            preflight(model.to("meta"), x, y, LINF)


def run(evaluator: Any, model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Result:
    given = {"name": "attack", "parameters": {}, "threat": LINF, "seed": 0, **settings}
    return evaluate(evaluator=evaluator, model=model, x=x, y=y, **given)


@dataclass(frozen=True)
class Harm(Attack):
    """An attack that misbehaves and then returns the images or fails."""

    harm: Callable[[nn.Module], None]
    fails: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        self.harm(model)
        if self.fails:
            raise OSError("no more")
        return x


def careless(harm: Callable[[nn.Module], None], *, fails: bool = False) -> Attacked:
    return Attacked(attack=Harm(harm, fails))


def _train_and_forward(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(images(8))


def _write_weights(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


def _replace_buffer(model: nn.Module) -> None:
    model.norm.running_var = torch.full((3,), 7.0)


def _learn(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(images(8)).sum().backward()


class TestEvaluate:
    def test_result_counts_and_writes_itself(self) -> None:
        model, x = Net().eval(), images(10)
        y = predictions(model, x)
        y[[2, 5]] = (y[[2, 5]] + 1) % 4
        result = run(Clean(batch_size=3), model, x, y, name="clean", parameters={"batch_size": 3}, seed=5)
        assert result.survivors == "1101101111"
        assert (result.correct, result.total, result.accuracy) == (8, 10, 0.8)
        assert result.interval == pytest.approx((0.443905, 0.974789), abs=1e-6)
        assert (result.forwards, result.gradients) == (10, 0)
        stored = result.to_json()
        assert json.loads(json.dumps(stored)) == stored
        assert set(stored) == {
            *("evaluator", "parameters", "norm", "eps", "eps_value", "seed", "survivors", "correct", "total"),
            *("accuracy", "interval", "forwards", "gradients", "seconds", "warnings", "stages", "suspicions"),
            *("verdict", "is_upper_bound", "fingerprint", "sample", "estimate", "certified"),
        }
        assert (stored["evaluator"], stored["parameters"], stored["seed"]) == ("clean", {"batch_size": 3}, 5)
        assert (stored["norm"], stored["eps"], stored["eps_value"]) == ("linf", "8/255", 8 / 255)
        assert result.seconds > 0

    def test_passes_are_counted_per_example(self) -> None:
        model, x = Net().eval(), images(10)
        y = predictions(model, x)
        y[0] = (y[0] + 1) % 4
        result = run(Attacked(attack=Pgd(steps=3), batch_size=4), model, x, y)
        # 10 clean forwards, then three steps and the verdict for 9 images.
        assert (result.forwards, result.gradients) == (10 + 9 * 4, 9 * 3)
        result = run(Attacked(attack=Fgsm()), model, x, y)
        assert (result.forwards, result.gradients) == (10 + 9 * 2, 9)

    def test_counting_does_not_change_the_gradient(self) -> None:
        model, x = Net().eval(), images(3).requires_grad_()
        (plain,) = torch.autograd.grad(model(x).square().sum(), x)
        with count_passes(model) as passes:
            (counted,) = torch.autograd.grad(model(x).square().sum(), x)
        assert torch.equal(plain, counted)
        assert (passes.forwards, passes.gradients) == (3, 3)
        model(x)
        assert passes.forwards == 3

    def test_equal_evaluators_give_equal_numbers_under_two_names(self) -> None:
        model, x = Net().eval(), images(60)
        y = predictions(model, x)
        attacked = Attacked(attack=Pgd(steps=0))
        threat = ThreatModel("linf", Fraction(1, 2))
        alone = run(attacked, model, x, y, name="attack", threat=threat)
        within = run(WorstCase(members=[Clean(), attacked]), model, x, y, name="worst_case", threat=threat)
        assert 0 < alone.correct < 60
        assert alone.survivors == within.survivors
        assert run(attacked, model, x, y, threat=threat, seed=1).survivors != alone.survivors

    def test_warnings_are_collected_once_and_not_shown(self) -> None:
        def complain(model: nn.Module) -> None:
            for _ in range(3):
                warnings.warn("gradients may be masked", stacklevel=2)

        model, x = Net().eval(), images(8)
        result = run(careless(complain), model, x, predictions(model, x))
        assert result.warnings == ["gradients may be masked"]

    def test_a_preflight_problem_stops_it(self) -> None:
        model, x = Net().eval(), images(8)
        with pytest.raises(EvaluationError, match="train mode"):
            run(Clean(), model.train(), x, predictions(Net().eval(), x))

    def test_a_random_model_needs_an_evaluator_made_for_it(self) -> None:
        model, x = Changed(lambda x, z: z + 100 * torch.rand_like(z)).eval(), images(8)
        y = predictions(model.net, x)
        with pytest.raises(EvaluationError, match="two equal calls"):
            run(AutoAttack(), model, x, y)
        both = WorstCase(members=[Clean(), AutoAttack(version="rand")])
        assert run(both, model, x, y, threat=ThreatModel("linf", Fraction(0))).total == 8

    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize(
        ("harm", "changed"),
        [
            (_train_and_forward, "norm.running_mean, norm.running_var, norm.num_batches_tracked"),
            (_write_weights, "conv.weight, conv.bias, norm.weight, ..."),
            (_replace_buffer, "norm.running_var"),
            (_learn, ""),
        ],
    )
    def test_the_model_is_put_back(self, harm: Callable[[nn.Module], None], changed: str, fails: bool) -> None:
        model, x = Net().eval(), images(8)
        y = predictions(model, x)
        model(x).sum().backward()
        model.conv.bias.requires_grad_(False)
        model.last.weight.grad = None
        before = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = {
            name: (parameter.requires_grad, parameter.grad, None if parameter.grad is None else parameter.grad.clone())
            for name, parameter in model.named_parameters()
        }
        buffer = model.norm.running_var
        if fails:
            with pytest.raises(OSError, match="no more"):
                run(careless(harm, fails=True), model, x, y)
        else:
            found = run(careless(harm), model, x, y).warnings
            assert found == ([] if not changed else [found[0]])
            assert not changed or f"the evaluation changed {changed} of the model" in found[0]
        assert not any(module.training for module in model.modules())
        assert model.norm.running_var is buffer
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        for name, parameter in model.named_parameters():
            is_trained, gradient, values = gradients[name]
            assert parameter.requires_grad == is_trained, name
            assert parameter.grad is gradient, name
            assert gradient is None or torch.equal(gradient, values), name

    @pytest.mark.parametrize("fails", [False, True])
    def test_global_generators_are_put_back(self, fails: bool) -> None:
        def draw(model: nn.Module) -> None:
            torch.rand(3)
            np.random.rand(3)

        model, x = Net().eval(), images(10)
        y = predictions(model, x)
        smoothed = RandomizedSmoothing(selection=5, samples=10, alpha=0.1, steps=1, gradients=1)
        before = torch.get_rng_state(), np.random.get_state()
        with suppress(OSError):
            run(careless(draw, fails=fails), model, x, y)
        run(smoothed, model, x, y)
        assert torch.equal(torch.get_rng_state(), before[0])
        for now, then in zip(np.random.get_state(), before[1], strict=True):
            assert np.array_equal(now, then)

    def test_weights_are_held_during_an_evaluation(self) -> None:
        seen: list[bool] = []
        model, x = Net().eval(), images(8)
        y = predictions(model, x)
        run(careless(lambda model: seen.extend(p.requires_grad for p in model.parameters())), model, x, y)
        assert seen == [False] * 6
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_autoattack_runs_through(self) -> None:
        """The whole path with either engine, at a radius where every image breaks at once."""
        model, x = Net().eval(), images(12)
        y = predictions(model, x)
        threat = ThreatModel("linf", Fraction(1, 3))
        native, package = (
            run(AutoAttack(engine=engine), model, x, y, name="autoattack", threat=threat)
            for engine in ("native", "reference")
        )
        for result in (native, package):
            assert result.correct == 0
            assert len(result.warnings) == 2
            assert "3 target classes" in result.warnings[0]
        assert package.gradients >= 12 * 100
        # Broken images cost nothing more.
        assert native.gradients < 12 * 10


class TestFullPrecision:
    def test_tf32_and_autocast_are_off_inside_and_back_outside(self) -> None:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        try:
            torch.set_float32_matmul_precision("medium")
            torch.backends.cudnn.allow_tf32 = True
            with torch.autocast("cpu", dtype=torch.bfloat16):
                with full_precision("cpu"):
                    assert not torch.backends.cuda.matmul.allow_tf32
                    assert not torch.backends.cudnn.allow_tf32
                    assert not torch.is_autocast_enabled("cpu")
                assert torch.is_autocast_enabled("cpu")
                with pytest.raises(OSError, match="no more"), full_precision("cpu"):
                    raise OSError("no more")
            assert torch.get_float32_matmul_precision() == "medium"
            assert torch.backends.cudnn.allow_tf32
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def test_the_use_of_tf32_is_reported(self) -> None:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        try:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = True
            assert tf32_in_use() == ["convolutions"]
            torch.set_float32_matmul_precision("high")
            assert tf32_in_use() == ["convolutions", "products"]
            with full_precision("cpu"):
                assert tf32_in_use() == []
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def test_the_check_of_an_epoch_is_in_full_precision_too(self) -> None:
        seen: list[list[str]] = []

        class Looks(Attack):
            def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
                seen.append(tf32_in_use())
                return x

        before = torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cudnn.allow_tf32 = True
            x, y = images(4), torch.arange(4)
            rng = IndexedNoise(0, torch.arange(4))
            gather(Attacked(attack=Looks()), Net().eval(), x, y, LINF, rng)
        finally:
            torch.backends.cudnn.allow_tf32 = before
        assert seen
        assert not any(seen)

    @pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older switches only")
    def test_the_newer_switches_are_kept_to_when_a_process_uses_them(self) -> None:
        cudnn: Any = torch.backends.cudnn
        before = cudnn.rnn.fp32_precision
        try:
            cudnn.rnn.fp32_precision = "ieee"
            # The older switch cannot be read any more.
            with pytest.raises(RuntimeError, match="mix"):
                _ = cudnn.allow_tf32
            with full_precision("cpu"):
                assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "ieee")
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == (before, "ieee")
        finally:
            cudnn.rnn.fp32_precision = before
