"""Free training: its equation, its state, and the replay of batches."""

import io
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import CPU, THREAT, RecordedLoop, Recorder, loop_of, training_of
from torch import Tensor, nn

from robustcli.contracts.networks import conv_net, drawn_from, images, labels
from robustcli.data.targets import Labels
from robustcli.defenses import Metrics
from robustcli.defenses.free import Free, FreeStep
from robustcli.defenses.natural import natural
from robustcli.errors import Interrupted, NotFiniteError, RobustCliError
from robustcli.optimization.averaging.ema import Ema
from robustcli.optimization.averaging.swa import Swa
from robustcli.optimization.progress import Progress
from robustcli.registry.types import Norm
from robustcli.specs.settings import Augment, TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import TrainingState
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.loop import Training, fit

EPS = 8 / 255
# Twenty images in batches of 8: three batches an epoch, the last of 4.
SETTINGS = TrainSettings(epochs=2, batch_size=8, lr=0.05)


def batch(number: int = 0, count: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return images(count, seed=30 + number, dtype=dtype), labels(count, seed=40 + number)


def begin(defense: Free, model: nn.Module, lr: float = 0.05) -> FreeStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return defense.start(model.train(), optimizer, StreamNoise.on(CPU))


def update(step: FreeStep, x: Tensor, y: Tensor, threat: ThreatModel = THREAT) -> Metrics:
    return step(x, Labels.of(y), threat, Progress(0, 3, 10))


def carried(step: FreeStep) -> Tensor:
    assert step.delta is not None
    return step.delta.clone()


# The equation.


@pytest.mark.parametrize("step_size", [None, 3 / 255])
def test_updates_are_those_of_a_plain_loop(step_size: float | None) -> None:
    """Weights and delta move by gradients at the old values; a smaller batch moves its part of delta."""
    model, reference = (conv_net(dtype=torch.float64).train() for _ in range(2))
    step = begin(Free(replays=2, step_size=step_size), model)
    weights = list(reference.parameters())
    velocity = [torch.zeros_like(weight) for weight in weights]
    delta = torch.zeros(8, 1, 8, 8, dtype=torch.float64)
    for number, count in ((0, 8), (0, 8), (1, 8), (1, 8), (2, 5), (2, 5), (3, 8), (3, 8)):
        x, y = batch(number, count)
        metrics = update(step, x, y)
        leaf = delta[:count].clone().requires_grad_()
        z = reference((x + leaf).clamp(0, 1))
        loss = (z.logsumexp(1) - z[torch.arange(count), y]).mean()
        *grads, of_delta = torch.autograd.grad(loss, [*weights, leaf])
        alpha = EPS if step_size is None else step_size
        delta[:count] = (delta[:count] + alpha * of_delta.sign()).clamp(-EPS, EPS)
        with torch.no_grad():
            for weight, grad, speed in zip(weights, grads, velocity, strict=True):
                speed.mul_(0.9).add_(grad + 5e-4 * weight)
                weight.sub_(0.05 * speed)
        assert torch.allclose(metrics["loss"], loss.detach(), rtol=0, atol=1e-12)
        assert torch.allclose(carried(step), delta, rtol=0, atol=1e-12)
    for one, other in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-10)


def test_the_first_update_is_a_natural_one_and_the_second_is_not() -> None:
    """Delta is zero at first; then it carries over from batch to batch."""
    models = [conv_net(), conv_net()]
    step = begin(Free(replays=1), models[0])
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    clean = natural().start(models[1].train(), optimizer, StreamNoise.on(CPU))
    found = []
    for number in range(2):
        x, y = batch(number, dtype=torch.float32)
        update(step, x, y)
        clean(x, Labels.of(y), THREAT, Progress(0, 3, 10))
        states = [list(model.state_dict().values()) for model in models]
        found.append(all(torch.equal(one, other) for one, other in zip(*states, strict=True)))
    assert found == [True, False]


def test_a_new_batch_meets_the_perturbation_of_the_one_before() -> None:
    model = conv_net(dtype=torch.float64)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    step = begin(Free(), model)
    update(step, *batch(0))
    stale = carried(step)
    x, y = batch(1)
    update(step, x, y)
    assert stale.abs().max() == pytest.approx(EPS)
    assert torch.equal(seen[1], (x + stale).clamp(0, 1))


def test_delta_is_held_in_the_ball_and_images_in_the_box() -> None:
    """Delta is not clipped to the box, since the next image has other pixels."""
    model = conv_net(dtype=torch.float64)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    step = begin(Free(), model)
    for number in range(4):
        update(step, *batch(number))
    delta = carried(step)
    assert delta.abs().max() <= EPS
    x = batch(3)[0]
    assert ((x + delta < 0) | (x + delta > 1)).any(), "no pixel of the test is near the box"
    assert min(float(point.min()) for point in seen) == 0
    assert max(float(point.max()) for point in seen) == 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_delta_is_as_large_as_the_ball_in_every_norm(norm: Norm) -> None:
    threat = ThreatModel(norm, Fraction(1, 5))
    step = begin(Free(), conv_net(dtype=torch.float64))
    for _ in range(3):
        update(step, *batch(0), threat)
    sizes = threat.size(carried(step))
    assert sizes.max() <= 0.2 * (1 + 1e-12)
    assert sizes.max() > 0.15


def test_radius_0_is_natural_training_with_every_batch_replayed() -> None:
    point = ThreatModel("linf", Fraction(0))
    models = [conv_net(), conv_net()]
    step = begin(Free(), models[0])
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    clean = natural().start(models[1].train(), optimizer, StreamNoise.on(CPU))
    for number in (0, 0, 1, 1):
        x, y = batch(number, dtype=torch.float32)
        update(step, x, y, point)
        clean(x, Labels.of(y), point, Progress(0, 3, 10))
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_a_smaller_batch_moves_only_its_part_of_delta() -> None:
    step = begin(Free(), conv_net(dtype=torch.float64))
    update(step, *batch(0))
    before = carried(step)
    update(step, *batch(1, count=5))
    after = carried(step)
    assert after.shape == before.shape
    assert torch.equal(after[5:], before[5:])
    assert not torch.equal(after[:5], before[:5])


def test_the_radius_of_a_warm_up_holds_what_was_carried() -> None:
    step = begin(Free(), conv_net(dtype=torch.float64))
    update(step, *batch(0))
    update(step, *batch(0), THREAT.scaled(0.5))
    assert carried(step).abs().max() <= EPS / 2


def test_state_holds_the_perturbation_and_survives_a_file() -> None:
    first, second = (begin(Free(), conv_net(dtype=torch.float64)) for _ in range(2))
    assert through_a_file(first.state_dict()) == {"delta": None}
    update(first, *batch(0))
    second.load_state_dict(through_a_file(first.state_dict()))
    assert torch.equal(carried(second), carried(first))
    second.load_state_dict({"delta": None})
    assert second.delta is None


# The loop.


@dataclass
class Noted(Recorder):
    """A recorder that keeps the batches too."""

    batches: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        self.batches.append(x)
        return super().__call__(x, labels, threat, progress)


def noted(replays: int, *, settings: TrainSettings = SETTINGS, augment: Augment | None = None) -> Noted:
    recorder = Noted()
    training = training_of(settings, recorder)
    fit(training, loop_of(training, settings, replays=replays, augment=augment))
    return recorder


def test_a_batch_is_replayed_before_the_next_one_comes() -> None:
    """The same images, augmented once; an epoch has batches times replays updates."""
    augment = Augment(crop=1, flip=True)
    once, thrice = noted(1, augment=augment), noted(3, augment=augment)
    assert once.sizes == [8, 8, 4] * 2
    assert thrice.sizes == [8] * 6 + [4] * 3 + [8] * 6 + [4] * 3
    assert [progress.step for progress in thrice.progresses] == list(range(18))
    assert {(progress.steps_per_epoch, progress.epochs) for progress in thrice.progresses} == {(9, 2)}
    for number, images_of_batch in enumerate(thrice.batches):
        assert torch.equal(images_of_batch, once.batches[number // 3])


def test_an_incomplete_batch_is_left_out_before_anything_is_replayed() -> None:
    assert noted(2, settings=replace(SETTINGS, drop_last=True)).sizes == [8] * 8


def test_averages_over_epochs_count_passes() -> None:
    training = training_of(SETTINGS, Noted(), averaging=Swa(start_epoch=0))
    loop = loop_of(training, SETTINGS, replays=3)
    fit(training, loop)
    assert training.average.state_dict()["epochs"] == SETTINGS.epochs


@pytest.mark.parametrize(("bad", "place"), [(0, "batch 1"), (4, "batch 2"), (8, "batch 3")])
def test_a_loss_that_is_not_finite_is_placed_in_its_batch(bad: int, place: str) -> None:
    training = training_of(SETTINGS, Recorder([1.0] * bad + [float("nan")]))
    with pytest.raises(NotFiniteError, match=rf"epoch 1, {place} \(update {bad + 1}\)"):
        fit(training, loop_of(training, SETTINGS, replays=3))


def test_steps_and_forwards_are_replays_times_batches() -> None:
    """One forward an update; the gradient of delta is a by-product."""
    counts = {"forwards": 0, "steps": 0}
    network = conv_net()

    def forward(*_: Any) -> None:
        counts["forwards"] += 1

    def stepped(*_: Any) -> None:
        counts["steps"] += 1

    noise = StreamNoise.on(CPU)
    training = training_of(SETTINGS, Free(replays=4), network=network, noise=noise)
    network.register_forward_hook(forward)
    training.optimizer.register_step_post_hook(stepped)
    fit(training, loop_of(training, SETTINGS, noise=noise, replays=4))
    assert counts == {"forwards": 4 * 3 * 2, "steps": 4 * 3 * 2}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stop_after", [1, 2, 5, 8, 9, 10, 17])
def test_a_resumed_run_equals_an_uninterrupted_one(stop_after: int) -> None:
    """Between two replays of a batch, after a smaller batch, at the end of an epoch: bit for bit."""
    defense = replace(Free(replays=3), averaging=Ema(decay=0.5))
    augment = Augment(crop=1, flip=True)

    def made(seed: int, stop_at: int) -> tuple[Training, RecordedLoop]:
        noise = StreamNoise.on(CPU)
        network = conv_net(seed=seed, dropout=0.2)
        training = training_of(SETTINGS, defense, network=network, averaging=defense.averaging, noise=noise)
        loop = loop_of(
            training,
            SETTINGS,
            noise=noise,
            augment=augment,
            replays=defense.replays,
            stop_requested=lambda: training.updates >= stop_at,
        )
        return training, loop

    straight, loop = made(0, 99)
    with drawn_from(1):
        fit(straight, loop)
    stopped, loop = made(0, stop_after)
    with drawn_from(2), suppress(Interrupted):
        fit(stopped, loop)
    assert stopped.updates == stop_after
    resumed, loop = made(5, 99)
    resumed.restore(TrainingState.model_validate(through_a_file(dict(stopped.state()))))
    with drawn_from(3):
        fit(resumed, loop)
    assert same(dict(straight.state()), dict(resumed.state()))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# In a spec.


def test_free_training_has_neither_an_attack_nor_a_weight_perturbation_to_replace(tmp_path: Path) -> None:
    text = (
        "name: x\ndata: digits\narchitecture: small_cnn\nthreat: {{eps: 0.1}}\n"
        "defense: {{name: free, {0}}}\ntrain: {{epochs: 1}}\nevaluate: {{clean: clean}}\n"
    )
    for part in ("weights: awp", "attack: pgd", "attack_bn: eval"):
        with pytest.raises(RobustCliError, match=rf"defense\.{part.split(':')[0]}: unknown parameter of 'free'"):
            ExperimentSpec.parse(text.format(part), "the test")
    assert ExperimentSpec.parse(text.format("averaging: ema"), "the test").defense.name == "free"
