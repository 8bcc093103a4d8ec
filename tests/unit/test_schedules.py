"""Schedules at their boundaries, by update, separately and in a real run."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from small_training import Recorder, loop_of, training_of
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.optimization.rates import set_rates
from robustcli.optimization.schedules import Schedule
from robustcli.optimization.schedules.smooth import Cosine, Cyclic, Linear, OneCycle
from robustcli.optimization.schedules.steps import Constant, Multistep, Piecewise
from robustcli.registry.registry import instantiate
from robustcli.specs import experiments
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.training.loop import fit


def factors(schedule: Schedule, epochs: int, steps_per_epoch: int) -> list[float]:
    return [schedule(Progress(step, steps_per_epoch, epochs)) for step in range(epochs * steps_per_epoch)]


def drops(values: Sequence[float]) -> list[int]:
    """Numbers of the updates at which the factor falls."""
    return [step for step in range(1, len(values)) if values[step] < values[step - 1] - 1e-12]


def test_progress_counts_the_updates_before() -> None:
    progress = Progress(7, steps_per_epoch=4, epochs=10)
    assert progress.epoch == 1.75
    assert progress.share == 7 / 40
    assert Progress(0, 4, 10).share == 0
    assert Progress(39, 4, 10).share < 1


def test_constant_is_1() -> None:
    assert set(factors(Constant(), 3, 5)) == {1.0}


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 383, 391])
@pytest.mark.parametrize("epochs", [4, 12, 200])
def test_piecewise_drops_on_the_last_update_before_half_time(epochs: int, steps_per_epoch: int) -> None:
    """Rice et al.'s count is taken after the update: epoch E/2 - 1, counted from 0, ends with the lower rate."""
    found = factors(Piecewise(), epochs, steps_per_epoch)
    expected = [
        (epochs // 2 - 1) * steps_per_epoch + steps_per_epoch - 1,
        (3 * epochs // 4 - 1) * steps_per_epoch + steps_per_epoch - 1,
    ]
    assert drops(found) == expected
    assert found[0] == 1.0
    assert found[expected[0]] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(0.01)


def test_piecewise_takes_other_shares_and_factors() -> None:
    found = factors(Piecewise(at=(0.1, 0.3, 0.7), factor=0.5), 10, 3)
    assert drops(found) == [2, 8, 20]
    assert found[-1] == pytest.approx(0.125)
    # In floats 0.55 * 100 is a little more than 55.
    assert drops(factors(Piecewise(at=(0.55,)), 20, 5)) == [54]
    # Two of 5 updates are less than one half.
    assert drops(factors(Piecewise(at=(0.5,)), 1, 5)) == [2]
    assert drops(factors(Piecewise(at=(0.5, 0.75)), 3, 3)) == [4, 6]


def test_multistep_drops_on_the_first_update_after_its_epochs() -> None:
    found = factors(Multistep(after=(2, 5)), 8, 4)
    assert drops(found) == [8, 20]
    assert [found[0], found[7], found[8], found[19], found[20]] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert factors(Multistep(after=(1,), factor=0.3), 2, 2) == pytest.approx([1, 1, 0.3, 0.3])
    assert factors(Multistep(after=(1, 2), factor=(0.3, 0.5)), 3, 2) == pytest.approx([1, 1, 0.3, 0.3, 0.15, 0.15])
    assert factors(Multistep(after=(3,), warmup=2), 4, 2) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.1, 0.1])
    decaying = factors(Multistep(after=(1,), factor=0.3, decay=0.5), 2, 2)
    assert decaying == pytest.approx([1, 1 / 1.5, 0.3 / 2, 0.3 / 2.5])


def test_multistep_has_as_many_factors_as_drops() -> None:
    with pytest.raises(RobustCliError, match=r"train\.schedule\.factor: 2 factors for 3 drops"):
        Multistep(after=(1, 2, 3), factor=(0.1, 0.1))


def test_friendly_training_ends_at_five_thousandths_of_its_rate() -> None:
    """Released as 0.1, 0.01 and 0.005 of the full rate from epochs 60, 90 and 110 of a loop that counts from 1."""
    spec = ExperimentSpec.read(experiments.find("cifar10/fat"))
    found = factors(instantiate(spec.train.schedule), spec.train.epochs, 2)
    assert drops(found) == [2 * 59, 2 * 89, 2 * 109]
    assert [found[step] for step in (117, 118, 178, 218)] == pytest.approx([1, 0.1, 0.01, 0.005])


def test_linear_is_a_straight_line() -> None:
    found = factors(Linear(), 4, 5)
    assert found == pytest.approx([1 - step / 20 for step in range(20)])
    assert factors(Linear(end=0.5), 4, 5) == pytest.approx([1 - step / 40 for step in range(20)])


def test_cosine_begins_at_1_and_ends_near_0() -> None:
    found = factors(Cosine(), 10, 10)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert found[-1] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert found[-1] < 1e-3
    assert found == sorted(found, reverse=True)


def test_cosine_after_a_warmup_from_0() -> None:
    found = factors(Cosine(warmup=2), 10, 10)
    assert found[:20] == pytest.approx([step / 20 for step in range(20)])
    assert found[20] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[-1] < 1e-3


def test_cosine_between_a_rate_to_begin_with_and_a_rate_to_end_with() -> None:
    """The light recipe: from 1e-6 to 5e-4 in 10 epochs, to 1e-5 in 90, and 10 more."""
    rates = [5e-4 * factor for factor in factors(Cosine(warmup=10, cooldown=10, initial=0.002, final=0.02), 110, 4)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[20] == pytest.approx((1e-6 + 5e-4) / 2)
    assert rates[40] == 5e-4
    assert rates[40 + 180] == pytest.approx((5e-4 + 1e-5) / 2)
    assert rates[399] > 1e-5
    assert rates[400:] == pytest.approx([1e-5] * 40)


@pytest.mark.parametrize(
    ("name", "base", "batch_size", "least"),
    [("cifar10/light_xcit", 2e-4, 128, 0.05), ("image_folder/light_xcit", 5e-4, 512, 0.02)],
)
def test_the_rate_of_the_light_recipe_goes_with_the_square_root_of_the_batch(
    name: str, base: float, batch_size: int, least: float
) -> None:
    """The rates of the source are for batches of 512."""
    train = ExperimentSpec.read(experiments.find(name)).train
    assert train.batch_size == batch_size
    assert train.lr == pytest.approx(base * math.sqrt(batch_size / 512))
    rates = [train.lr * factor for factor in factors(instantiate(train.schedule), train.epochs, 4)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == pytest.approx(train.lr)
    assert rates[-1] == pytest.approx(least * train.lr)


def test_cyclic_is_a_triangle() -> None:
    found = factors(Cyclic(), 10, 10)
    assert found[0] == 0.0
    assert found[50] == 1.0
    assert max(found) == 1.0
    assert found[25] == pytest.approx(0.5)
    assert found[75] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(0.02)
    early = factors(Cyclic(peak=0.4), 10, 10)
    assert early[0] == 0.0
    assert early[40] == 1.0
    assert early[70] == pytest.approx(0.5)


def test_one_cycle_rises_and_falls_along_half_cosines() -> None:
    found = factors(OneCycle(), 100, 10)
    assert found[0] == pytest.approx(0.04)
    assert found[150] == pytest.approx((1 + 0.04) / 2)
    assert found[300] == 1.0
    assert found[650] == pytest.approx(0.5, abs=1e-5)
    assert found[-1] == pytest.approx(0.000004, abs=1e-5)
    other = factors(OneCycle(peak=0.025, initial=0.5, final=0.1), 100, 10)
    assert other[0] == pytest.approx(0.5)
    assert other[25] == 1.0
    assert other[-1] == pytest.approx(0.1, abs=1e-5)


def _of_torch(
    make: Callable[[Optimizer], LRScheduler], kind: type[SGD] | type[Adam], updates: int
) -> tuple[list[float], list[float]]:
    """Learning rates and momenta of the first updates under a schedule of torch."""
    optimizer = kind([torch.zeros(1, requires_grad=True)], lr=0.3)
    if kind is SGD:
        optimizer.param_groups[0]["momentum"] = optimizer.defaults["momentum"] = 0.9
    schedule = make(optimizer)
    rates, momenta = [], []
    for _ in range(updates):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["momentum"] if kind is SGD else group["betas"][0])
        optimizer.step()
        schedule.step()
    return rates, momenta


def _of_a_run(schedule: Schedule, kind: type[SGD] | type[Adam]) -> tuple[list[float], list[float]]:
    """Those of a run of 40 updates."""
    settings = TrainSettings(epochs=20, batch_size=10, lr=0.3)
    recorder = Recorder()
    training = training_of(settings, recorder)
    recorder.optimizer = training.optimizer = kind(training.network.parameters(), lr=0.3)
    fit(training, loop_of(training, settings, schedule=schedule))
    return recorder.rates, recorder.momenta


@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("peak", [0.5, 0.4])
def test_cyclic_cycles_rate_and_momentum_as_torch_does(peak: float, kind: type[SGD] | type[Adam]) -> None:
    rates, momenta = _of_torch(
        lambda optimizer: CyclicLR(
            optimizer, 0.0, 0.3, step_size_up=int(peak * 40), step_size_down=int(40 - peak * 40)
        ),
        kind,
        40,
    )
    found = _of_a_run(Cyclic(peak=peak, momentum=(0.8, 0.9)), kind)
    assert found[0] == pytest.approx(rates)
    assert found[1] == pytest.approx(momenta)
    assert min(momenta) == pytest.approx(0.8)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_one_cycle_cycles_rate_and_momentum_as_torch_does(kind: type[SGD] | type[Adam]) -> None:
    # torch counts from the first update to the last, so its peak and end come one update earlier.
    rates, momenta = _of_torch(
        lambda optimizer: OneCycleLR(
            optimizer, 0.3, total_steps=41, pct_start=11 / 41, div_factor=25, final_div_factor=1e4
        ),
        kind,
        40,
    )
    found = _of_a_run(OneCycle(peak=0.25, initial=0.04, final=0.04e-4, momentum=(0.85, 0.95)), kind)
    assert found[0] == pytest.approx(rates)
    assert found[1] == pytest.approx(momenta)
    assert (momenta[0], min(momenta)) == pytest.approx((0.95, 0.85))


def test_the_momentum_of_the_optimizer_stays_where_the_schedule_has_none() -> None:
    for schedule in (Constant(), Piecewise(), Linear(), Cosine(), Cyclic(), OneCycle()):
        assert set(_of_a_run(schedule, Adam)[1]) == {0.9}


def test_a_cycled_momentum_needs_an_optimizer_that_has_one() -> None:
    optimizer = torch.optim.Adagrad([torch.zeros(1)])
    with pytest.raises(RobustCliError, match="Adagrad has no momentum"):
        set_rates(optimizer, 0.1, 0.9)


@pytest.mark.parametrize(
    ("name", "momentum"),
    [
        ("rs_fgsm", (0.8, 0.9)),
        ("n_fgsm", (0.8, 0.9)),
        ("flc", (0.8, 0.9)),
        ("hat", (0.85, 0.95)),
        ("hat_helper", (0.85, 0.95)),
        ("score_generated", (0.85, 0.95)),
    ],
)
def test_recipes_cycle_their_momentum_as_released(name: str, momentum: tuple[float, float]) -> None:
    spec = ExperimentSpec.read(experiments.find(f"cifar10/{name}"))
    assert instantiate(spec.train.schedule).momentum == momentum


def test_recipes_of_loops_that_count_from_1_drop_one_epoch_earlier() -> None:
    after = {"trades_awp": (99, 149), "norm_decay": (74, 89, 99), "svc": (74, 89, 99), "dial_awp": (74, 89, 99)}
    for name, expected in after.items():
        spec = ExperimentSpec.read(experiments.find(f"cifar10/{name}"))
        assert instantiate(spec.train.schedule).after == expected
        if name.endswith("awp"):
            assert spec.defense.parameters["weights"].parameters["warmup"] == 9
        else:
            assert spec.architecture.options.normalize == "none"


@pytest.mark.parametrize(
    "schedule",
    [Constant(), Piecewise(), Multistep(after=(1, 3)), Linear(), Cosine(warmup=1), Cyclic(), OneCycle()],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_run_uses_the_rates_of_its_schedule(schedule: Schedule) -> None:
    settings = TrainSettings(epochs=4, batch_size=8, lr=0.3)
    recorder = Recorder()
    training = training_of(settings, recorder)
    loop = loop_of(training, settings, schedule=schedule)
    fit(training, loop)
    # 20 images: the last batch of an epoch holds 4.
    assert loop.steps_per_epoch == 3
    assert recorder.rates == pytest.approx([0.3 * factor for factor in factors(schedule, 4, 3)])
    assert [record["lr"] for record in loop.records] == recorder.rates[2::3]
