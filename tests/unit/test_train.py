"""The training loop: stops, order of operations, resuming, and calls of the network."""

import io
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from small_training import COUNT, CPU, THREAT, RecordedLoop, Recorder, loop_of, small_data, training_of
from torch import Tensor, nn

from robustcli.attacks.crafting import evaluating
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, drawn_from, images, labels
from robustcli.data.loading import load_data
from robustcli.data.splits import Data
from robustcli.data.targets import Labels
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.trades import trades
from robustcli.errors import CollapseError, Interrupted, NotFiniteError
from robustcli.models.build import build_network
from robustcli.optimization.averaging.ema import Ema
from robustcli.optimization.averaging.swa import Swa
from robustcli.optimization.progress import Progress
from robustcli.optimization.schedules.steps import Multistep
from robustcli.optimization.weights.awp import Awp
from robustcli.specs.settings import Augment, TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import CheckedCheckpoint, Checkpoint, TrainingState
from robustcli.store.records import CheckRecord
from robustcli.store.results import read_run_results
from robustcli.store.runs import RunFolder
from robustcli.threat.noise import StreamNoise, derive
from robustcli.threat.threat import ThreatModel
from robustcli.training.check import Check
from robustcli.training.loop import Training, fit
from robustcli.training.model import TrainingModel, parameter_groups
from robustcli.training.saver import Saver
from robustcli.workflows.train import run_experiment

# Twenty images in batches of 8: three updates an epoch.
SETTINGS = TrainSettings(epochs=4, batch_size=8, lr=0.05)


def run(settings: TrainSettings = SETTINGS, *, losses: Any = (), checks: Any = ()) -> tuple[RecordedLoop, Recorder]:
    recorder = Recorder(losses)
    training = training_of(settings, recorder)
    loop = loop_of(training, settings, checks=checks)
    fit(training, loop)
    return loop, recorder


# Order of operations


def test_every_update_is_made_once_and_in_order() -> None:
    loop, recorder = run()
    assert [progress.step for progress in recorder.progresses] == list(range(12))
    assert {(progress.steps_per_epoch, progress.epochs) for progress in recorder.progresses} == {(3, 4)}
    assert recorder.sizes == [8, 8, 4] * 4
    assert [record["epoch"] for record in loop.records] == [0, 1, 2, 3]


def test_drop_last_leaves_out_an_incomplete_batch() -> None:
    _, recorder = run(replace(SETTINGS, drop_last=True))
    assert recorder.sizes == [8, 8] * 4


def test_the_epochs_loss_is_a_mean_over_images() -> None:
    """Not a mean of batch means: the batch of four counts half."""
    loop, _ = run(losses=[1.0, 2.0, 7.0])
    assert loop.records[0]["loss"] == pytest.approx((8 * 1 + 8 * 2 + 4 * 7) / 20)
    assert loop.records[1]["loss"] == pytest.approx(1.0)


def test_no_epochs_is_no_training() -> None:
    loop, recorder = run(replace(SETTINGS, epochs=0))
    assert not recorder.progresses
    assert not loop.saved


# A loss that is not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("update", "place", "kept"),
    [
        (0, "epoch 1, batch 1", "no epoch was complete before it"),
        (4, "epoch 2, batch 2", "the checkpoint of epoch 1 is kept"),
        (11, "epoch 4, batch 3", "the checkpoint of epoch 3 is kept"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(bad: float, update: int, place: str, kept: str) -> None:
    recorder = Recorder([1.0] * update + [bad])
    training = training_of(SETTINGS, recorder)
    loop = loop_of(training, SETTINGS)
    with pytest.raises(NotFiniteError, match=rf"{place} \(update {update + 1}\); {kept}"):
        fit(training, loop)
    assert len(recorder.progresses) == update + 1, "went on training"
    assert [saved for saved, _, _ in loop.saved] == [3 * epoch for epoch in range(1, update // 3 + 1)]
    (event,) = loop.events
    assert event["event"] == "failed"
    assert place in event["text"]


def test_weights_that_blow_up_stop_a_real_run() -> None:
    settings = replace(SETTINGS, lr=1e30)
    noise = StreamNoise.on(CPU)
    training = training_of(settings, natural(), noise=noise)
    with pytest.raises(NotFiniteError, match="epoch 1, batch"):
        fit(training, loop_of(training, settings, noise=noise))


# Catastrophic overfitting.

GOOD = [{"clean": 0.7, "robust": 0.40, "fgsm": 0.45}, {"clean": 0.7, "robust": 0.45, "fgsm": 0.5}]
COLLAPSED = {"clean": 0.8, "robust": 0.05, "fgsm": 0.9}
AFTER = {"clean": 0.8, "robust": 0.02, "fgsm": 0.95}


def collapsing(policy: Literal["stop", "rewind", "continue"]) -> tuple[Training, RecordedLoop]:
    settings = replace(SETTINGS, on_collapse=policy, select="robust")
    training = training_of(settings, Recorder())
    return training, loop_of(training, settings, checks=[*GOOD, COLLAPSED, AFTER])


def test_collapse_stops_the_run() -> None:
    training, loop = collapsing("stop")
    with pytest.raises(
        CollapseError, match=r"epoch 3: accuracy 5\.0% under many steps \(best 45\.0%\), 90\.0% under one"
    ):
        fit(training, loop)
    assert [updates for updates, _, _ in loop.saved] == [3, 6], "the collapsed weights were saved"
    assert loop.events[0]["event"] == "collapsed"
    assert loop.records[-1]["robust"] == 0.05, "the record of the epoch says why"


@pytest.mark.parametrize(("defense", "is_stopped"), [("natural", False), ("{name: pgd_at, steps: 1}", True)])
def test_only_adversarial_training_is_stopped_by_a_collapse(
    defense: str, is_stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Natural training may lose robustness that it never aimed at, also if weights are selected by robustness."""
    planned = iter([*GOOD, COLLAPSED])
    monkeypatch.setattr(Check, "__call__", lambda *_: CheckRecord.model_validate(next(planned)))
    spec = ExperimentSpec.parse(
        "name: falling\ndata: {name: digits, val_size: 20, train_size: 40}\n"
        "architecture: {name: small_cnn, width: 4, hidden: 8}\nthreat: {norm: linf, eps: 0.1}\n"
        f"defense: {defense}\ntrain: {{epochs: 3, batch_size: 40, select: robust, device: cpu}}\nevaluate: {{}}\n",
        "falling",
    )
    with pytest.raises(CollapseError) if is_stopped else nullcontext():
        folder = run_experiment(spec, tmp_path, Screen(is_quiet=True))
        results = read_run_results(folder.results)
        assert (results.status, results.collapsed_at, results.epoch) == ("finished", None, 1)


def test_collapse_rewinds_and_ends_the_run() -> None:
    training, loop = collapsing("rewind")
    fit(training, loop)
    assert loop.reloads == [9]
    assert training.is_over
    assert training.collapsed_at == 2
    assert loop.events[0]["event"] == "rewound"
    assert [is_best for _, is_best, _ in loop.saved] == [True, True, False]
    assert len(loop.records) == 3
    # When resumed, the run stays stopped.
    fit(training, loop)
    assert len(loop.records) == 3


def test_collapse_is_noted_once_when_the_run_continues() -> None:
    training, loop = collapsing("continue")
    fit(training, loop)
    assert training.collapsed_at == 2
    assert not training.is_over
    assert len(loop.records) == 4
    assert [is_best for _, is_best, _ in loop.saved] == [True, True, False, False]
    assert training.best_epoch == 1


@pytest.mark.parametrize(
    "check",
    [
        {"clean": 0.8, "robust": 0.26, "fgsm": 0.9},
        {"clean": 0.8, "robust": 0.05, "fgsm": 0.2},
        {"clean": 0.1},
    ],
    ids=["fell by less than 20 points", "one step breaks it as well", "does not aim at robustness"],
)
def test_what_is_no_collapse_does_not_stop_the_run(check: dict[str, float]) -> None:
    settings = replace(SETTINGS, epochs=3)
    training = training_of(settings, Recorder())
    loop = loop_of(training, settings, checks=[*GOOD, check])
    fit(training, loop)
    assert training.collapsed_at is None
    assert not loop.events


NEVER = {"clean": 0.95, "robust": 0.02, "fgsm": 0.8}


@pytest.mark.parametrize("policy", ["stop", "rewind", "continue"])
def test_what_is_robust_to_one_step_only_has_collapsed_when_it_ends(
    policy: Literal["stop", "rewind", "continue"],
) -> None:
    settings = replace(SETTINGS, epochs=3, on_collapse=policy)
    training = training_of(settings, Recorder())
    loop = loop_of(training, settings, checks=[{"clean": 0.8, "robust": 0.0, "fgsm": 0.1}, NEVER, NEVER])
    fit(training, loop)
    assert training.collapsed_at == 2
    assert not training.is_over
    assert [updates for updates, _, _ in loop.saved] == [3, 6, 9], "there is nothing better to keep"


@pytest.mark.parametrize(
    "last",
    [{"clean": 0.9, "robust": 0.15, "fgsm": 0.8}, {"clean": 0.9, "robust": 0.02, "fgsm": 0.5}, {"clean": 0.9}],
    ids=["robust to many steps a little", "not robust to one", "does not aim at robustness"],
)
def test_who_passes_through_robustness_to_one_step_has_not_collapsed(last: dict[str, float]) -> None:
    settings = replace(SETTINGS, epochs=3, on_collapse="stop")
    training = training_of(settings, Recorder())
    fit(training, loop_of(training, settings, checks=[NEVER, NEVER, last]))
    assert training.collapsed_at is None


# Which weights are the best.


@pytest.mark.parametrize(
    ("select", "best", "chosen"),
    [("robust", [True, False, True, False], 2), ("clean", [True, True, False, False], 1), ("last", [True] * 4, 3)],
)
def test_selection(select: Literal["robust", "clean", "last"], best: list[bool], chosen: int) -> None:
    checks = [
        {"clean": 0.5, "robust": 0.3, "fgsm": 0.3},
        {"clean": 0.7, "robust": 0.3, "fgsm": 0.3},
        {"clean": 0.6, "robust": 0.4, "fgsm": 0.4},
        {"clean": 0.7, "robust": 0.4, "fgsm": 0.4},
    ]
    settings = replace(SETTINGS, select=select)
    training = training_of(settings, Recorder())
    loop = loop_of(training, settings, checks=checks)
    fit(training, loop)
    assert [is_best for _, is_best, _ in loop.saved] == best, "a tie keeps the earlier weights"
    assert training.best_epoch == chosen


@pytest.mark.parametrize(("select", "chosen"), [("robust", 1), ("clean", 2), ("last", 3)])
def test_the_best_checkpoint_holds_the_weights_of_the_epoch_that_was_chosen(
    select: Literal["robust", "clean", "last"], chosen: int, tmp_path: Path
) -> None:
    robust, clean = (0.2, 0.4, 0.3, 0.3), (0.5, 0.5, 0.7, 0.6)
    checks = [{"clean": c, "robust": r, "fgsm": r} for c, r in zip(clean, robust, strict=True)]
    settings = replace(SETTINGS, select=select)
    folder, noise = RunFolder(tmp_path), StreamNoise.on(CPU)
    training = training_of(settings, natural(), noise=noise)
    weights: list[dict[str, Tensor]] = []

    def check(network: nn.Module) -> CheckRecord:
        weights.append(deepcopy(network.state_dict()))
        return CheckRecord.model_validate(checks[len(weights) - 1])

    saver = Saver(ExperimentSpec.parse(TINY, "the test"), small_data(), training, folder)
    fit(training, replace(loop_of(training, settings, noise=noise), check=check, save=saver.save))
    for path, epoch in ((folder.best, chosen), (folder.last, 3)):
        stored = CheckedCheckpoint.read(path)
        assert stored.check.epoch == epoch
        assert stored.weights.keys() == weights[epoch].keys()
        for number, held in enumerate(weights):
            is_equal = all(torch.equal(value, held[name]) for name, value in stored.weights.items())
            assert is_equal == (number == epoch)


# Warm-up of the radius.


def test_radius_rises_in_a_straight_line_and_stays() -> None:
    _, recorder = run(replace(SETTINGS, eps_warmup=2.0))
    radii = [threat.radius for threat in recorder.threats]
    full = 8 / 255
    assert radii == pytest.approx([full * min(1, step / 6) for step in range(12)])
    assert radii[0] == 0
    assert recorder.threats[6] == THREAT
    assert recorder.threats[-1].eps == Fraction(8, 255)


@pytest.mark.parametrize(
    ("form", "shares"),
    [
        ("line", [0, 1 / 9, 2 / 9, 3 / 9, 4 / 9, 5 / 9, 6 / 9, 7 / 9, 8 / 9, 1, 1, 1]),
        ("stairs", [0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1]),
        ("sine", [0, 0, 0, 0.25, 0.25, 0.25, 0.75, 0.75, 0.75, 1, 1, 1]),
    ],
)
def test_forms_of_the_warmup_of_the_radius(form: Literal["line", "stairs", "sine"], shares: list[float]) -> None:
    _, recorder = run(replace(SETTINGS, eps_warmup=3.0, eps_warmup_form=form))
    assert [threat.radius for threat in recorder.threats] == pytest.approx([8 / 255 * share for share in shares])


def test_stairs_may_end_within_an_epoch() -> None:
    _, recorder = run(replace(SETTINGS, eps_warmup=1.5, eps_warmup_form="stairs"))
    assert [threat.radius for threat in recorder.threats[::3]] == pytest.approx([0, 16 / 765, 8 / 255, 8 / 255])


def test_without_warmup_every_step_has_the_full_radius() -> None:
    _, recorder = run()
    assert set(recorder.threats) == {THREAT}


def test_the_defense_attacks_at_the_radius_of_the_step() -> None:
    """The images that the network is trained on move with the warm-up."""
    settings = replace(SETTINGS, epochs=2, eps_warmup=1.0, batch_size=COUNT)
    noise = StreamNoise.on(CPU)
    network = conv_net()
    training = training_of(settings, pgd_at(steps=2), network=network, noise=noise)
    seen: list[Tensor] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    fit(training, loop_of(training, settings, noise=noise))
    hook.remove()
    x = images(COUNT)
    first, second = (images_of(batch, x) for batch in seen)
    assert first == 0
    assert second == pytest.approx(8 / 255, abs=1e-6)


def images_of(batch: Tensor, x: Tensor) -> float:
    """Distance of a shuffled batch to the images that it was made from."""
    distance = (batch[:, None] - x[None]).flatten(2).abs().amax(2)
    return float(distance.amin(1).max())


# Resuming.


def state_of(training: Training) -> TrainingState:
    """The state as it is read from a file."""
    file = io.BytesIO()
    torch.save(dict(training.state()), file)
    file.seek(0)
    return TrainingState.model_validate(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    "defense",
    [
        natural(),
        replace(pgd_at(steps=1), averaging=Ema(decay=0.5)),
        replace(trades(steps=1), weights=Awp(), averaging=Swa(start_epoch=0)),
    ],
    ids=["natural", "pgd_at with ema", "trades with awp and swa"],
)
@pytest.mark.parametrize("stop_after", [1, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(defense: MinMax, stop_after: int) -> None:
    """In the middle of an epoch too; with dropout, augmentation, momentum and averages."""
    augment = Augment(crop=1, flip=True)

    def begin(seed: int = 0) -> tuple[Training, StreamNoise]:
        noise = StreamNoise.on(CPU)
        network = conv_net(seed=seed, dropout=0.2)
        return training_of(SETTINGS, defense, network=network, averaging=defense.averaging, noise=noise), noise

    straight, noise = begin()
    straight_loop = loop_of(straight, SETTINGS, noise=noise, augment=augment)
    with drawn_from(1):
        fit(straight, straight_loop)

    stopped, noise = begin()
    loop = loop_of(
        stopped, SETTINGS, noise=noise, augment=augment, stop_requested=lambda: stopped.updates >= stop_after
    )
    with drawn_from(2), pytest.raises(Interrupted, match=f"after update {stop_after}"):
        fit(stopped, loop)
    assert loop.saved[-1][0] == stop_after
    state = state_of(stopped)

    resumed, noise = begin(seed=5)
    resumed.restore(state)
    resumed_loop = loop_of(resumed, SETTINGS, noise=noise, augment=augment)
    with drawn_from(3):
        fit(resumed, resumed_loop)

    left, right = straight.network.state_dict(), resumed.network.state_dict()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    averages = [training.average.averaged(training.network, lambda: [images(8)]) for training in (straight, resumed)]
    for one, other in zip(averages[0].state_dict().values(), averages[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert resumed_loop.records[-1]["loss"] == straight_loop.records[-1]["loss"]
    whole = {record["epoch"]: record["loss"] for record in straight_loop.records}
    for record in resumed_loop.records:
        assert record["loss"] == pytest.approx(whole[record["epoch"]], rel=1e-6)


def test_a_stop_within_an_epoch_does_not_wait_for_a_pass_over_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of an average are re-estimated at the end of the epoch; until then they are the trained network's."""
    noise, passes = StreamNoise.on(CPU), []
    clean_batches = Data.clean_batches
    monkeypatch.setattr(Data, "clean_batches", lambda *given: passes.append(1) or clean_batches(*given))
    averaging = Swa(start_epoch=0)
    training = training_of(SETTINGS, natural(), averaging=averaging, noise=noise)
    saved: list[nn.Module] = []
    loop = replace(
        loop_of(training, SETTINGS, noise=noise, stop_requested=lambda: training.updates >= 4),
        save=lambda network, *_: saved.append(deepcopy(network)),
    )
    with pytest.raises(Interrupted, match="after update 4"):
        fit(training, loop)
    assert len(passes) == 1, "more than that of the first epoch"
    assert len(saved) == 2
    statistics = dict(training.network.named_buffers())
    assert statistics
    for name, value in saved[-1].named_buffers():
        assert torch.equal(value, statistics[name]), name
    assert not torch.equal(next(saved[-1].parameters()), next(training.network.parameters())), "not the average"


@pytest.mark.parametrize("stop_after", [3, 9, 12])
def test_a_stop_on_the_last_update_of_an_epoch_loses_nothing_of_it(stop_after: int) -> None:
    """The epoch is checked, logged and compared, at once or after resuming, with the same loss."""

    def begin(losses: list[float], stop_at: int) -> tuple[Training, RecordedLoop]:
        settings = replace(SETTINGS, select="clean")
        training = training_of(settings, Recorder(losses))
        checks = [{"clean": 0.1 * epoch} for epoch in range(1, 5)]
        loop = loop_of(training, settings, checks=checks, stop_requested=lambda: training.updates >= stop_at)
        return training, loop

    losses = [float(update) for update in range(12)]
    straight, whole = begin(losses, stop_at=99)
    fit(straight, whole)
    stopped, first = begin(losses, stop_at=stop_after)
    with suppress(Interrupted):
        fit(stopped, first)
    assert first.saved[-1][0] == stop_after
    resumed, second = begin(losses[stop_after:], stop_at=99)
    resumed.restore(state_of(stopped))
    # Checks made before the stop are not repeated.
    for _ in first.records:
        second.check(resumed.network)
    fit(resumed, second)

    def told(*loops: RecordedLoop) -> list[tuple[int, float, float]]:
        return [(line["epoch"], line["loss"], line["clean"]) for loop in loops for line in loop.records]

    assert told(first, second) == told(whole)
    assert resumed.best_epoch == straight.best_epoch
    chosen = [updates for loop in (first, second) for updates, is_best, _ in loop.saved if is_best]
    assert chosen == [updates for updates, is_best, _ in whole.saved if is_best]


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_seeds_give_equal_weights_and_other_seeds_others(seed: int) -> None:
    def weights(seed: int) -> list[Tensor]:
        noise = StreamNoise.on(CPU)
        training = training_of(SETTINGS, pgd_at(steps=1), network=conv_net(dropout=0.2), noise=noise)
        with drawn_from(seed + 50):
            fit(training, loop_of(training, SETTINGS, noise=noise, seed=seed))
        return [parameter.detach() for parameter in training.network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights(seed), weights(seed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(seed), weights(seed + 1), strict=True))


# Parameter groups.


class ResponseNorm(nn.Module):
    """Like those of other packages, which derive from nn.Module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.group = nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm(4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.root = nn.RMSNorm(4)
        self.other = ResponseNorm()
        self.linear = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(1))
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))
        self.pos_embed = nn.Parameter(torch.ones(1, 3, 4))


VECTORS = {"conv.bias", "linear.bias", "scale", "cls_token", "temperature", "pos_embed"}
NORMS = {f"{layer}.{kind}" for layer in ("bn", "group", "layer", "instance") for kind in ("weight", "bias")}
NORMS |= {"root.weight", "other.scale"}


@pytest.mark.parametrize(
    ("exclude", "spared"),
    [
        ("none", set()),
        ("bn", NORMS),
        ("bn_and_bias", NORMS | {"conv.bias", "linear.bias"}),
        ("vectors", NORMS | VECTORS),
    ],
)
def test_weight_decay_spares_what_it_should(exclude: str, spared: set[str]) -> None:
    network = Mixed()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decay: dict[str, float] = {}
    for group in parameter_groups(network, 5e-4, exclude):
        for parameter in group["params"]:
            assert names[parameter] not in decay, "in two groups"
            decay[names[parameter]] = group["weight_decay"]
    assert decay == {name: 0.0 if name in spared else 5e-4 for name in names.values()}


def test_every_group_follows_the_schedule() -> None:
    """Released code moves only the rate of the first group."""
    settings = replace(SETTINGS, weight_decay_exclude="bn_and_bias", epochs=2)
    recorder = Recorder()
    training = training_of(settings, recorder)
    fit(training, loop_of(training, settings, schedule=Multistep(after=(1,), factor=0.5)))
    assert [group["lr"] for group in training.optimizer.param_groups] == [0.025, 0.025]


# How the network is called.


def test_bf16_keeps_weights_and_logits_in_single_precision() -> None:
    network = conv_net()
    model = TrainingModel(network, replace(SETTINGS, precision="bf16"), CPU).train()
    x = images(8)
    inner: list[torch.dtype] = []
    hook = network[0].register_forward_hook(lambda _module, _inputs, output: inner.append(output.dtype))  # type: ignore[index]
    logits = model(x)
    hook.remove()
    assert inner == [torch.bfloat16], "the passes are not in bf16"
    assert logits.dtype == torch.float32
    full = TrainingModel(deepcopy(network), SETTINGS, CPU).train()(x)
    assert not torch.equal(logits, full)
    assert torch.allclose(logits, full, atol=0.05)


@pytest.mark.parametrize(
    "defense", [pgd_at(steps=2), replace(trades(steps=2), weights=Awp())], ids=["pgd_at", "trades"]
)
def test_bf16_training_keeps_single_precision_weights_and_optimizer(defense: MinMax) -> None:
    settings = replace(SETTINGS, precision="bf16", epochs=1)
    noise = StreamNoise.on(CPU)
    training = training_of(settings, defense, noise=noise)
    begun = {name: value.clone() for name, value in training.network.state_dict().items()}
    fit(training, loop_of(training, settings, noise=noise))
    for name, value in training.network.state_dict().items():
        if "tracked" not in name:
            assert value.dtype == torch.float32
            assert not torch.equal(value, begun[name]), f"{name} was not trained"
    for parameter in training.network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert training.optimizer.state[parameter]["momentum_buffer"].dtype == torch.float32


def test_channels_last_changes_only_rounding() -> None:
    weights: list[list[Tensor]] = []
    for is_last in (False, True):
        settings = replace(SETTINGS, channels_last=is_last, epochs=2)
        network = conv_net(channels=1)
        if is_last:
            network.to(memory_format=torch.channels_last)
        noise = StreamNoise.on(CPU)
        # Without attack steps: a sign near zero would turn rounding into a step.
        training = training_of(settings, pgd_at(steps=0), network=network, noise=noise)
        fit(training, loop_of(training, settings, noise=noise, augment=Augment(crop=1, flip=True)))
        weights.append([parameter.detach() for parameter in network.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_network_sees_images_in_the_requested_format() -> None:
    seen: list[bool] = []
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    network.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    for is_last in (False, True):
        TrainingModel(network, replace(SETTINGS, channels_last=is_last), CPU)(images(4, 3))
    assert seen == [False, True]


def test_evaluating_restores_the_mode_after_an_error() -> None:
    network = conv_net().train()
    with suppress(ZeroDivisionError), evaluating(network):
        assert not network.training
        raise ZeroDivisionError
    assert network.training


def test_evaluating_restores_the_mode_of_every_part() -> None:
    """A batch norm that stays in eval mode during training does not start to train after a check."""
    network = conv_net().train()
    frozen = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module for module in network.modules() if not module.training] == [frozen]


# Clipping, which belongs to the optimizer that a run makes.

TINY = """
name: clipped
data: {name: digits, train_size: 64}
architecture: {name: small_cnn, width: 4, hidden: 16}
threat: {norm: linf, eps: 0.1}
defense: {name: natural}
train: {epochs: 1, batch_size: 64, lr: 1, optimizer: {name: sgd, momentum: 0}, weight_decay: 0, device: cpu}
evaluate: {}
"""


def trained(text: str, folder: Path) -> tuple[ExperimentSpec, dict[str, Tensor]]:
    """A spec and the weights that its run ends with."""
    spec = ExperimentSpec.parse(text, "the test")
    with drawn_from(0):
        found = run_experiment(spec, folder, Screen(is_quiet=True))
    weights: dict[str, Tensor] = Checkpoint.read(found.last).weights
    return spec, weights


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_clipping_bounds_the_update(limit: float, tmp_path: Path) -> None:
    """One update of rate 1 moves the weights by the norm of the clipped gradient."""
    text = TINY.replace("epochs: 1,", f"epochs: 1, grad_clip: {limit},")
    spec, weights = trained(text, tmp_path)
    data = load_data(spec.data, CPU)
    with drawn_from(derive(spec.seed, "init")):
        before = build_network(spec.architecture, data.shape, data.mean, data.std).state_dict()
    moved = torch.cat([(weights[name] - value).flatten() for name, value in before.items()])
    assert moved.norm().item() == pytest.approx(limit, rel=1e-3)
    _, unclipped = trained(TINY, tmp_path / "unclipped")
    moved = torch.cat([(unclipped[name] - value).flatten() for name, value in before.items()])
    assert moved.norm().item() > limit


def test_clipping_a_gradient_of_zero_changes_nothing(tmp_path: Path) -> None:
    """With a single class the loss and its gradient are zero."""
    x = np.arange(8 * 8 * 8, dtype=np.uint8).reshape(8, 8, 8, 1)
    y = np.zeros(8, dtype=np.int64)
    np.savez(tmp_path / "one.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    text = TINY.replace("{name: digits, train_size: 64}", f"{{name: npz, path: '{tmp_path / 'one.npz'}'}}")
    _, weights = trained(text.replace("epochs: 1,", "epochs: 1, grad_clip: 1,"), tmp_path / "runs")
    assert all(torch.isfinite(value).all() for value in weights.values())


# Random numbers of an update


def test_noise_of_an_update_depends_only_on_seed_and_update() -> None:
    drawn: dict[int, list[float]] = {}

    class Drawing(Recorder):
        def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> dict[str, Tensor]:
            first = float(noise.uniform(x[:1, :1, :1, :1]))
            drawn.setdefault(progress.step, []).extend([first, float(torch.rand(()))])
            for _ in range(skipped):
                noise.uniform(x)
                torch.rand(3)
            return super().__call__(x, labels, threat, progress)

    for skipped in (0, 3):
        noise = StreamNoise.on(CPU)
        training = training_of(SETTINGS, Drawing())
        with drawn_from(skipped):
            fit(training, loop_of(training, SETTINGS, noise=noise))
    assert all(values[:2] == values[2:] for values in drawn.values())
    assert len({tuple(values) for values in drawn.values()}) == 12


def test_labels_travel_with_their_images() -> None:
    x, y = images(COUNT), labels(COUNT)
    found: list[bool] = []

    class Matching(Recorder):
        def __call__(
            self, x_batch: Tensor, batch: Labels, threat: ThreatModel, progress: Progress
        ) -> dict[str, Tensor]:
            rows = (x_batch[:, None] - x[None]).flatten(2).abs().amax(2).argmin(1)
            found.append(torch.equal(y[rows], batch.loss))
            return super().__call__(x_batch, batch, threat, progress)

    training = training_of(SETTINGS, Matching())
    fit(training, loop_of(training, SETTINGS))
    assert found == [True] * 12
