"""Benchmarks of single parts: evaluations and their peers, the input pipeline, architectures, and line fits."""

import json
import os
import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.bench import architectures, data, scaling
from robustcli.bench.architectures import YARDSTICK, bench_architectures
from robustcli.bench.data import bench_data
from robustcli.bench.decoding import bench_decoding
from robustcli.bench.evaluate import bench_evaluation
from robustcli.bench.results.bases import Bench
from robustcli.bench.results.evaluation import EvaluationPasses
from robustcli.bench.results.file import parse_benches
from robustcli.bench.results.training import TrainingBench, TrainingDefense, TrainingRow, TrainingSettings
from robustcli.bench.scaling import bench_scaling, fitted
from robustcli.bench.subjects import BenchSubject
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import RobustCliError
from robustcli.measuring import network_profile, timing
from robustcli.measuring.machine import Machine
from robustcli.measuring.network_profile import Profile
from robustcli.measuring.timing import Spread
from robustcli.registry.registry import MemberSpec
from robustcli.reports.benchmarks.attacks import evaluation_rows
from robustcli.reports.benchmarks.costs import (
    architecture_rows,
    data_rows,
    describe_architectures,
    describe_decoding,
    describe_scaling,
    scaling_rows,
)
from robustcli.reports.benchmarks.tables import markdown_of
from robustcli.store.passes import Passes
from robustcli.store.provenance import this_session
from robustcli.threat.threat import ThreatModel

VERDICTS = {"faster", "slower", "within the spread"}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SAMPLE", 0.0)


def is_table(rows: Iterable[dict[str, str]]) -> bool:
    return len({tuple(row) for row in rows}) == 1


def assert_stored(result: Bench, block: str) -> None:
    """Check that a result is read from a file as it was written, and that it has a block."""
    assert parse_benches(json.loads(json.dumps(result.to_json())), "a.json") == [result]
    assert markdown_of({"a.json": [result]})[0] == block


# Evaluations


@pytest.fixture
def subject() -> BenchSubject:
    network, x = conv_net().eval(), images(12)
    y = network(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    return BenchSubject("net", network, x, y, ThreatModel("linf", "1/10"))


class Peers:
    """Stand-ins for torchattacks and foolbox that record their calls and return the images unchanged."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.wants: list[bool] = []
        self.precisions: list[tuple[str, bool]] = []

    def pgd(self, network: Any, **settings: Any) -> Any:
        self.notes.append(settings)

        def attack(x: Tensor, y: Tensor) -> Tensor:
            self.batches.append(len(x))
            self.wants.append(all(parameter.requires_grad for parameter in network.parameters()))
            self.precisions.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            F.cross_entropy(network(x.clone().requires_grad_()), y).backward()  # type: ignore[no-untyped-call]
            return x

        return attack

    def foolbox_pgd(self, **settings: Any) -> Any:
        self.notes.append(settings)
        return lambda model, x, y, epsilons: (None, x, epsilons)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Peers:
    found = Peers()
    monkeypatch.setitem(sys.modules, "torchattacks", SimpleNamespace(PGD=found.pgd))
    attacks = SimpleNamespace(LinfPGD=found.foolbox_pgd)
    model = lambda network, bounds, device: (network, bounds)  # noqa: E731
    monkeypatch.setitem(sys.modules, "foolbox", SimpleNamespace(attacks=attacks, PyTorchModel=model))
    return found


@pytest.mark.slow
def test_evaluations_are_measured_with_their_passes_and_peers(subject: BenchSubject, peers: Peers) -> None:
    result = bench_evaluation(subject, rounds=3)
    names = [row.name for row in result.rows]
    assert names == [
        "ours, images leave", "ours again", "ours, to the last step", "its passes alone",
        "torchattacks, as it comes", "foolbox, as it comes",
    ]  # fmt: skip
    ours, again, whole, alone, torchattacks, foolbox = result.rows
    assert alone.passes == EvaluationPasses(forwards=21, gradients=20, weight_gradients=0)
    assert alone.robust is None
    # Three of twelve are wrong when clean. The clean images and the examples found take a forward each, and the check
    # that the network gives gradients takes a pass of two images.
    probe = 2 / 12
    expected = {"forwards": 1 + 9 / 12 * 21 + probe, "gradients": 9 / 12 * 20 + probe, "weight_gradients": 0}
    assert vars(whole.passes) == pytest.approx(expected)
    assert ours.passes.gradients <= whole.passes.gradients
    assert ours.robust is not None
    assert whole.robust is not None
    assert ours.robust <= whole.robust <= 9
    assert torchattacks.robust == foolbox.robust == 9, "the stand-ins attack nobody"
    assert again.verdict is None
    assert {row.verdict for row in (whole, alone, torchattacks, foolbox)} <= VERDICTS
    radius = float(subject.threat.radius)
    assert peers.notes[0] == {"eps": radius, "alpha": radius / 4, "steps": 20, "random_start": True}
    assert peers.notes[1] == {"steps": 20, "abs_stepsize": radius / 4, "random_start": True}
    assert set(peers.batches) == {12}
    assert all(peers.wants), "as their users have it"
    assert set(peers.precisions) == {(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)}
    assert torch.backends.cudnn.allow_tf32, "what torch does by itself"
    # One pass with gradients of images and weights, and the verdict.
    assert torchattacks.passes == EvaluationPasses(forwards=2, gradients=1, weight_gradients=1)
    assert foolbox.passes == EvaluationPasses(forwards=1, gradients=0, weight_gradients=0)
    assert alone.over_limit == torchattacks.beside_torchattacks == Spread(1, 1, 1)
    assert foolbox.over_limit.high < 1
    assert all(row.peak_bytes > 0 for row in result.rows)
    assert all(row.images_per_second == pytest.approx(12 / row.seconds.median) for row in result.rows)
    assert set(result.peers) == {"torchattacks", "foolbox"}
    assert is_table(evaluation_rows([result]))
    assert_stored(result, "evaluation speed")


@pytest.mark.slow
def test_missing_peers_are_left_out_with_a_message(subject: BenchSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    result = bench_evaluation(subject, rounds=3)
    assert len(result.rows) == 4
    assert result.peers == {}
    assert all(row.beside_torchattacks is None for row in result.rows)
    assert [note.split()[0] for note in result.notes] == ["torchattacks", "foolbox"]


# Data


def test_seconds_of_an_epoch_are_divided_by_the_images_of_its_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_IMAGES", 11)
    monkeypatch.setattr(data, "bench_decoding", lambda _: None)
    monkeypatch.setattr(data, "measure", lambda samples, rounds: {name: [8.0] * rounds for name in samples})
    for row in bench_data(4, 3, "cpu").rows:
        assert (row.seconds_per_image.median, row.share_of_step.median) == (1.0, 0.5)


@pytest.mark.slow
def test_the_pipeline_is_a_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_IMAGES", 8)
    monkeypatch.setattr(data, "bench_decoding", lambda _: decoding)
    # Two processes instead of four.
    one = {min(os.sched_getaffinity(0))}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: one)
    decoding = bench_decoding(1, files=3)
    result = bench_data(4, 3, "cpu")
    assert [row.name for row in result.rows] == ["ours", "ours again", "torchvision, PIL"]
    step = result.step.seconds_per_image
    for row in result.rows:
        share, seconds = row.share_of_step, row.seconds_per_image
        assert seconds.low / step.high <= share.low <= share.median <= share.high < 1
    assert result.rows[2].verdict in VERDICTS
    assert is_table(data_rows([result]))
    assert_stored(result, "data speed")
    assert {(row.name, row.processors) for row in decoding.rows} >= {("ours", 1), ("torchvision, DataLoader", 1)}
    for loader in decoding.rows:
        assert loader.images_per_second.low > 0
        assert loader.processor_ms_per_image.low > 0.5
    # One loader on one processor, against itself.
    assert 0.2 < decoding.scaling.median < 5
    assert 0.2 < decoding.scaling_quietest < 5
    assert 0.2 < decoding.processor_scaling.median < 5
    # Some part of decoding holds the interpreter lock, but not most of it.
    whole = next(row.processor_ms_per_image.low for row in decoding.rows if row.processors == 1)
    assert 0 < decoding.lock_ms_per_image.low < whole
    text = describe_decoding([result, result.model_copy(update={"decoding": None})])
    assert "under the interpreter lock, so one process decodes at most" in text
    assert "per processor, on 1: " in text


# Architectures


def test_architectures_are_measured_against_their_cost() -> None:
    result = bench_architectures(("small_cnn",), 1, 3, "cpu")
    yardstick, small = result.rows
    assert (yardstick.name, small.name) == ("resnet18", "small_cnn")
    assert yardstick.ratio.gradient == Spread(1, 1, 1)
    assert yardstick.macs > 100 * small.macs
    # In so small a network, overhead dominates the multiply-accumulates.
    assert small.is_slow
    assert not yardstick.is_slow
    assert is_table(architecture_rows([result]))
    assert describe_architectures([result]).endswith("small_cnn")
    assert_stored(result, "architecture speed")
    with pytest.raises(RobustCliError, match=r"there is no 'resnet_18'.*'resnet18'"):
        bench_architectures(("resnet_18",), 1, 3, "cpu")
    with pytest.raises(RobustCliError, match="'cifs' has required settings"):
        bench_architectures(("cifs",), 1, 3, "cpu")


def test_a_network_is_slow_only_if_it_is_in_every_round() -> None:
    network = architectures._Member("net", None, {}, 300, 1)  # type: ignore[arg-type]
    reference = architectures._Timed(network, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])

    def is_slow(seconds: list[float]) -> bool:
        return architectures._Timed(network, reference.forward, seconds).row(reference, 1).is_slow

    assert is_slow([4.0, 3.1, 5.0])
    assert not is_slow([4.0, 2.9, 5.0])


def test_large_architectures_are_made_narrower() -> None:
    member = architectures._sized("wide_resnet")
    assert member.settings
    assert member.macs <= architectures._LARGE
    assert architectures._sized("resnet18").settings == {}
    assert architectures._sized("robust_wide_resnet").macs <= architectures._LARGE


def test_every_layer_and_every_network_around_another_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def profile_of(architecture: MemberSpec, shape: ImageShape) -> Profile:
        """Return the profile of the reference, since the others take seconds."""
        return network_profile.profile_of(architecture, shape) if architecture.name == YARDSTICK else Profile((), 0)

    monkeypatch.setattr(architectures, "profile_of", profile_of)
    every = list(architectures._members(()))
    members = {member.label: member for member in every}
    for layer in ("activation silu", "norm conv", "downsample flc", "channel_gate residual_se"):
        assert f"resnet18 ({layer})" in members
    assert members["resnet18 (downsample flc)"].macs == members["resnet18"].macs
    assert {"cifs (network resnet18)", "multibn (network resnet18)"} <= set(members)
    # Compared by content, since most have the same name.
    assert len(members) == len(every)


# Scaling


def test_a_line_is_not_bent_by_one_point() -> None:
    found = fitted({n: n for n in range(1, 6)}, {1: [3.0], 2: [5.0], 3: [7.0], 4: [100.0], 5: [11.0]})
    assert (found.start, found.slope) == (1, 2)


def test_points_are_off_the_line_beyond_tolerance_and_spread() -> None:
    sizes = {value: float(value) for value in (1, 2, 4, 8, 16)}
    seconds = {value: [2.0 * value] * 3 for value in sizes}
    assert not any(point.is_off for point in fitted(sizes, seconds).points)
    off = fitted(sizes, {**seconds, 16: [50.0, 51.0, 52.0]})
    assert [point.value for point in off.points if point.is_off] == [16]
    # No claim within the spread.
    noisy = fitted(sizes, {**seconds, 16: [20.0, 51.0, 52.0]})
    assert not any(point.is_off for point in noisy.points)


@pytest.mark.slow
def test_costs_are_reported_over_every_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    forked.fork_instead_of_spawning(monkeypatch)
    for name in ("BATCHES", "STEPS", "WIDTHS"):
        monkeypatch.setattr(scaling, name, (1, 2, 4))
    monkeypatch.setattr(scaling, "_BATCH", 2)
    result = bench_scaling("small_cnn", 3, 2, "cpu")
    assert list(result.axes) == ["batch", "steps", "width", "workers"]
    assert [point.value for point in result.axes["workers"].points] == [1, 2]
    sizes = [point.size for point in result.axes["width"].points]
    assert sizes == sorted(sizes)
    assert is_table(scaling_rows([result]))
    assert describe_scaling([result]).count("\n") == 3
    assert_stored(result, "scaling")


def test_training_has_a_block_too() -> None:
    ratio, passes = Spread(1.5, 1.25, 1.75), Passes(11, 10, 1)

    def row(
        name: str, passes: Passes = passes, ratio: Spread | None = ratio, verdict: str | None = None
    ) -> TrainingRow:
        return TrainingRow(
            name=name, seconds=Spread(1, 1, 2), images_per_second=500, ratio=ratio, verdict=verdict,
            over_limit=Spread(1.5, 1.25, 1.75), passes=passes, peak_bytes=12_300_000,
        )  # fmt: skip

    rows = [row("ours", ratio=None), row("ours again"), row("its passes alone", verdict="within the spread"),
            row("peer", Passes(12), verdict="faster")]  # fmt: skip
    result = TrainingBench(
        provenance=this_session("cpu"),
        machine=Machine(processor="p", cores=1, threads=1, load=0.5, torch="t"),
        settings=TrainingSettings(
            architecture={"name": "small_cnn", "width": 4}, weights="awp", batch_size=4, image=[3, 32, 32],
            precision="fp32", channels_last=False, compile=True, rounds=3, clock="cpu",
        ),
        notes=[],
        defenses={
            "pgd_at": TrainingDefense(passes=passes, least_passes=None, rows=rows),
            "natural": TrainingDefense(passes=passes, least_passes=None, rows=rows[:3]),
        },
    )  # fmt: skip
    busier = result.machine.model_copy(update={"load": 2.0})
    later = result.model_copy(update={"machine": busier, "peers": {"peer": "1.2"}})
    name, text = markdown_of({"a.json": [result], "b.json": [later]})
    assert name == "training speed"
    head, _, *lines = text.splitlines()
    assert head == (
        "| network | batch | update | by | passes | images/s | peak MB | time / limit "
        "| our speed / this row's: median (min-max) | ours is |"
    )
    network, spread = "| small_cnn width 4, fp32, compiled | 4 |", "1.50 (1.25-1.75)"
    ours = (
        f"ours | 11 + 10 + 1 | 500.0 | 12.3 | {spread} | again {spread} | compared with the limit: within the spread |"
    )
    assert lines[:3] == [
        f"{network} pgd_at with awp | {ours}",
        f"{network} pgd_at with awp | peer | 12 + 0 + 0 | 500.0 | 12.3 | {spread} | {spread} | faster |",
        f"{network} natural with awp | {ours}",
    ]
    assert "cpu; p, 1 core, 1 thread, load 0.5 to 2.0; torch t, peer 1.2." in text
    wall = result.settings.model_copy(update={"clock": "wall"})
    on_gpu = markdown_of({"a.json": [result.model_copy(update={"settings": wall})]})[1]
    assert "| images/s | s per 50,000 images | peak MB |" in on_gpu
    assert "| 500.0 | 100.0 | 12.3 |" in on_gpu


@pytest.mark.slow
def test_random_inputs_are_not_the_subject(subject: BenchSubject) -> None:
    # Measuring changes neither weights nor modes.
    before = {name: value.clone() for name, value in subject.network.state_dict().items()}
    bench_evaluation(subject, rounds=3)
    assert all(torch.equal(value, before[name]) for name, value in subject.network.state_dict().items())
    assert not subject.network.training
