"""Extra images: their number in a batch, order, labels, and unsuitable files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import CPU
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, gated_net, images, labels
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.extra import Extra, Joined, read_extra
from robustcli.data.loading import load_data
from robustcli.data.splits import Data, prepare
from robustcli.data.targets import Targets
from robustcli.defenses import Batch
from robustcli.defenses.cifs import cifs
from robustcli.defenses.mart import mart
from robustcli.defenses.trades import TradesLoss, trades
from robustcli.errors import RobustCliError
from robustcli.specs.settings import Augment
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import Checkpoint
from robustcli.threat.noise import StreamNoise
from robustcli.workflows.train import run_experiment

OWN, ADDED = 20, 7


def split(count: int, first: int) -> TensorSplit:
    """Images that contain their number."""
    images = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    return TensorSplit(images.contiguous(), torch.arange(count) % 4)


def data(share: float | None, *, val_size: int = 0, train_size: int | None = None, **targets: Any) -> Data:
    source = Source(split(OWN, 0), split(3, 200), ["a", "b", "c", "d"], (0.5,) * 3, (0.25,) * 3)
    extra = None if share is None else Extra(split(ADDED, 100), share)
    return prepare(
        source,
        val_size=val_size,
        train_size=train_size,
        device=CPU,
        workers=0,
        extra=extra,
        targets=Targets(**targets),
    )


def batches(
    given: Data, size: int, *, seed: int = 0, drop_last: bool = False, skip: int = 0
) -> list[tuple[list[int], Tensor]]:
    """Image numbers and labels of each batch of an epoch."""
    order = given.epoch(torch.Generator().manual_seed(seed), size, drop_last)
    found = given.train_batches(order, size, drop_last=drop_last, augment=Augment(), rng=StreamNoise.on(CPU), skip=skip)
    return [((255 * x[:, 0, 0, 0]).round().long().tolist(), labels.loss) for x, labels in found]


@pytest.mark.parametrize("share", [None, 0.0, 0.1])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_share_of_nothing_leaves_the_batches_of_a_plain_sampler(share: float | None, drop_last: bool) -> None:
    """A share below one image per batch adds no images."""
    plain, found = (batches(data(given), 6, drop_last=drop_last) for given in (None, share))
    assert [numbers for numbers, _ in found] == [numbers for numbers, _ in plain]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(found, plain, strict=True))


@pytest.mark.parametrize(("share", "size", "added"), [(0.5, 6, 3), (0.7, 10, 7), (0.29, 100, 29), (0.34, 6, 2)])
def test_a_batch_holds_so_many_of_them(share: float, size: int, added: int) -> None:
    assert Extra(split(1, 0), share).per_batch(size) == added
    if size > OWN:
        return
    found = batches(data(share), size)
    assert len(found) == data(share).steps_per_epoch(size, drop_last=False) == -(-OWN // size)
    for numbers, _ in found[:-1]:
        assert [number >= 100 for number in numbers] == [False] * (size - added) + [True] * added
    own = [number for numbers, _ in found for number in numbers if number < 100]
    assert len(set(own)) == len(own), "an image of the data set twice in an epoch"
    assert {number for numbers, _ in found for number in numbers} <= set(range(OWN)) | set(range(100, 100 + ADDED))


def test_labels_belong_to_their_images() -> None:
    for numbers, y in batches(data(0.5, val_size=4, train_size=11), 4):
        assert y.tolist() == [(number - 100 if number >= 100 else number) % 4 for number in numbers]
        # Images that validation or train_size leaves out do not come back as added ones.
        assert sum(number >= 100 for number in numbers) == 2


def test_extra_images_come_again_and_differ_from_epoch_to_epoch() -> None:
    first, second = (batches(data(0.7), 10, seed=seed) for seed in (0, 1))
    added = [[number for numbers, _ in found for number in numbers if number >= 100] for found in (first, second)]
    assert added[0] != added[1]
    assert max(added[0].count(number) for number in added[0]) > 1, "14 draws of 7 images, and none twice"


def test_an_epoch_resumes_between_its_batches() -> None:
    whole = batches(data(0.5, smoothing=0.1), 6)
    for skip in range(len(whole) + 1):
        rest = batches(data(0.5, smoothing=0.1), 6, skip=skip)
        assert [numbers for numbers, _ in rest] == [numbers for numbers, _ in whole[skip:]]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(rest, whole[skip:], strict=True))


def test_nothing_but_training_sees_them() -> None:
    with_extra, without = data(0.5, val_size=5), data(None, val_size=5)
    assert with_extra.sizes == without.sizes
    assert with_extra.digest == without.digest
    assert bool(with_extra.extra_digest) > bool(without.extra_digest)
    for part in ("train", "val", "test"):
        for one, other in zip(with_extra.evaluation(part), without.evaluation(part), strict=True):  # type: ignore[arg-type]
            assert torch.equal(one, other)
    assert torch.equal(torch.cat([*with_extra.clean_batches(4)]), torch.cat([*without.clean_batches(4)]))


def test_bytes_and_floats_meet_as_floats() -> None:
    floats = TensorSplit(torch.full((2, 3, 4, 5), 0.5), torch.zeros(2, dtype=torch.int64))
    found = Joined(floats, split(3, 51)).read(torch.tensor([4, 0, 2]))
    assert found[:, 0, 0, 0].tolist() == pytest.approx([53 / 255, 0.5, 51 / 255])
    assert found.dtype == torch.float32


# Label smoothing.


def smoothed(targets: Targets, y: Tensor, is_extra: Tensor) -> Tensor:
    found = targets(y, is_extra, 4)
    assert found.attack is y
    return found.loss


def test_smoothing_by_source_and_in_both_definitions() -> None:
    y, is_extra = torch.tensor([1, 3]), torch.tensor([False, True])
    everyone = smoothed(Targets(smoothing=0.2, extra_smoothing=0.4), y, is_extra)
    assert everyone.tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05]), pytest.approx([0.1, 0.1, 0.1, 0.7])]
    others = smoothed(Targets(smoothing=0.2, extra_smoothing=0.4, over="others"), y, is_extra)
    third, more = 0.2 / 3, 0.4 / 3
    assert others.tolist() == [pytest.approx([third, 0.8, third, third]), pytest.approx([more, more, more, 0.6])]
    assert torch.allclose(everyone.sum(1), torch.ones(2))
    assert torch.allclose(others.sum(1), torch.ones(2))
    # The definitions differ by s / k on the label.
    assert float(everyone[0, 1] - others[0, 1]) == pytest.approx(0.2 / 4)


def test_smoothing_of_one_source_leaves_the_other_one_hot() -> None:
    y, is_extra = torch.tensor([1, 3]), torch.tensor([False, True])
    assert smoothed(Targets(extra_smoothing=0.4), y, is_extra)[0].tolist() == [0, 1, 0, 0]


def test_attacks_see_unsmoothed_labels_by_default() -> None:
    y, is_extra = torch.tensor([1, 3]), torch.tensor([False, True])
    for_loss = Targets(smoothing=0.2)(y, is_extra, 4)
    assert for_loss.attack is y
    for_both = Targets(smoothing=0.2, reach_attack=True)(y, is_extra, 4)
    assert torch.equal(for_both.loss, for_loss.loss)
    assert for_both.attack is for_both.loss
    plain = Targets(over="others")(y, is_extra, 4)
    assert plain.attack is plain.loss is y


# Files.

SHAPE = ImageShape(3, 4, 5, 4)
GOOD = {"image": np.zeros((6, 4, 5, 3), np.uint8), "label": np.array([0, 1, 2, 3, 0, 1])}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "more.npz"
    arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return str(path)


def test_the_archive_is_read_and_pseudo_labels_replace_its_own(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    path = written(tmp_path, image=images)
    found = read_extra(path, None, SHAPE)
    assert np.array_equal(found.images.numpy(), images.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == GOOD["label"].tolist()
    guessed = np.array([3, 3, 3, 3, 3, 0])
    np.save(tmp_path / "guessed.npy", guessed)
    np.savez(tmp_path / "guessed.npz", label=guessed)
    for name in ("guessed.npy", "guessed.npz"):
        assert read_extra(path, str(tmp_path / name), SHAPE).labels.tolist() == guessed.tolist()
    # With labels of their own, images need none in the archive.
    without = written(tmp_path, image=images, label=None)
    assert read_extra(without, str(tmp_path / "guessed.npy"), SHAPE).labels.tolist() == guessed.tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": None}, r"does not have image \(it has label\)"),
        ({"label": None}, r"does not have label \(it has image\)"),
        ({"image": np.zeros((6, 4, 5, 3))}, "image is float64; expected uint8"),
        ({"image": np.zeros((6, 3, 4, 5), np.uint8)}, r"image has shape \(6, 3, 4, 5\); expected \(n, 4, 5, 3\)"),
        ({"image": np.zeros((0, 4, 5, 3), np.uint8)}, r"expected \(n, 4, 5, 3\)"),
        ({"label": np.zeros(6)}, "label is float64; expected integers"),
        ({"label": np.zeros(5, int)}, r"label has shape \(5,\); expected \(6,\)"),
        ({"label": np.array([0, 1, -1, 3, 4, 0])}, "label has the label 4; expected 0 to 3"),
        ({"label": np.array([0, 1, -2, 3, -1, 0])}, "label has the label -2; expected 0 to 3, or -1 for no label"),
    ],
)
def test_what_does_not_suit_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RobustCliError, match=said):
        read_extra(written(tmp_path, **changes), None, SHAPE)


def test_files_that_are_not_there_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match=r"data\.extra\.path: there is no file .*gone\.npz"):
        read_extra(str(tmp_path / "gone.npz"), None, SHAPE)
    with pytest.raises(RobustCliError, match=r"data\.extra\.labels: there is no file .*gone\.npy"):
        read_extra(written(tmp_path), str(tmp_path / "gone.npy"), SHAPE)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RobustCliError, match="cannot be read"):
        read_extra(str(tmp_path / "broken.npz"), None, SHAPE)


# Runs.

SPEC = """\
name: more
data: {{name: digits, train_size: 96, {data}}}
architecture: {{name: small_cnn, width: 4, hidden: 16}}
threat: {{norm: linf, eps: 0.1}}
defense: {{name: {defense}}}
train: {{epochs: 1, batch_size: 32, check_examples: 10, check_steps: 1, device: cpu}}
evaluate: {{clean: {{name: clean, examples: 10}}}}
"""


def spec_of(data: str, defense: str = "natural") -> ExperimentSpec:
    text = SPEC.format(data=data, defense=defense)
    if defense.startswith("cifs"):
        text = text.replace("small_cnn, width: 4, hidden: 16", "cifs, network: resnet18")
    return ExperimentSpec.parse(text, "the test")


def test_a_run_trains_on_them_and_its_evaluation_does_not_need_them(tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    generator = np.random.default_rng(0)
    np.savez(path, image=generator.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8), label=np.arange(50) % 10)
    spec = spec_of(f"extra: {{path: {path}, share: 0.5}}")
    run = run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))
    plain = run_experiment(spec_of("val_size: 0"), tmp_path / "plain", Screen(is_quiet=True))
    weights, others = (Checkpoint.read(each.last).weights for each in (run, plain))
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    path.unlink()
    assert load_data(spec.data, CPU).sizes.train == 96
    with pytest.raises(RobustCliError, match="there is no file"):
        load_data(spec.data, CPU, to_train=True)


def test_a_resumed_run_needs_the_same_extra_images(tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    spec = spec_of(f"extra: {{path: {path}, share: 0.5}}")
    arrays = {"image": np.zeros((5, 8, 8, 1), np.uint8), "label": np.arange(5)}
    np.savez(path, **arrays)
    run = run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))
    run.results.unlink()
    np.savez(path, **{**arrays, "label": np.arange(5)[::-1]})
    with pytest.raises(RobustCliError, match=r"the data changed: .* data\.extra now gives"):
        run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True), resume=True)


def test_smoothed_labels_reach_the_loss(tmp_path: Path) -> None:
    losses = []
    for data in ("label_smoothing: 0", "label_smoothing: 0.5", "label_smoothing: 0.5, smoothing_over: others"):
        run = run_experiment(spec_of(data), tmp_path / str(len(losses)), Screen(is_quiet=True))
        losses.append(run.records()[0].measures["loss"])
    assert len(set(losses)) == 3


# No labels.


@pytest.mark.parametrize("over", ["all", "others"])
@pytest.mark.parametrize("reach_attack", [False, True])
def test_an_image_without_a_label_has_no_shares(over: Any, reach_attack: bool) -> None:
    y, is_extra = torch.tensor([1, -1, 3]), torch.tensor([False, True, True])
    given = Targets(is_complete=False)(y, is_extra, 4)
    assert given.attack.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert given.loss is given.attack
    some = Targets(smoothing=0.1, extra_smoothing=0.2, over=over, reach_attack=reach_attack, is_complete=False)
    asked = some(y, is_extra, 4).loss
    rows = torch.tensor([0, 2])
    assert torch.equal(
        asked[rows], smoothed(replace(some, reach_attack=False, is_complete=True), y[rows], is_extra[rows])
    )
    assert not asked[1].any()


def test_without_a_label_trades_uses_only_the_divergence() -> None:
    model, x, x_adv, y = conv_net().eval(), images(6), images(6, seed=5), labels(6)
    shares = nn.functional.one_hot(y, 10).float()
    shares[4:] = 0
    loss = trades(beta=3.0).loss
    assert isinstance(loss, TradesLoss)
    entropies = nn.functional.cross_entropy(model(x), y, reduction="none")
    whole = loss(model, Batch(x, y, x_adv))
    assert loss(model, Batch(x, shares, x_adv)).item() == pytest.approx(
        (whole - entropies[4:].sum() / 6).item(), rel=1e-5
    )


def test_runs_without_some_labels_need_a_defense_that_can_spare_them(tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    drawn = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=drawn, label=np.where(np.arange(50) % 2, np.arange(50) % 10, -1))
    extra = f"extra: {{path: {path}, share: 0.5, label_smoothing: 0.1}}"
    run = run_experiment(spec_of(extra, "trades, steps: 2"), tmp_path / "runs", Screen(is_quiet=True))
    assert run.records()[0].measures["loss"] > 0
    run_experiment(
        spec_of(extra, "trades, attack: {name: adam_pgd, loss: kl, steps: 1}"), tmp_path / "runs", Screen(is_quiet=True)
    )
    fooled = "trades, attack: {name: pgd, start: gaussian, loss: kl, keep: fooled}"
    for number, defense in enumerate(("pgd_at", "trades, attack: {name: pgd, loss: ce}", fooled, "mart", "score")):
        spec = spec_of(extra.replace(", label_smoothing: 0.1", ""), defense)
        with pytest.raises(RobustCliError, match=r"data\.extra: some images have no label"):
            run_experiment(spec, tmp_path / str(number), Screen(is_quiet=True))


def test_free_training_refuses_them() -> None:
    with pytest.raises(RobustCliError, match=r"data\.extra: .*carries its perturbation"):
        spec_of("extra: {path: more.npz}", "free")


@pytest.mark.parametrize("data", ["mixer: cutmix", "label_smoothing: 0.1", "extra: {path: a, label_smoothing: 0.1}"])
@pytest.mark.parametrize(("defense", "rule"), [("mart", "expected"), ("cifs", "largest")])
def test_shares_where_an_equation_names_the_label_are_refused_unless_a_rule_is_chosen(
    data: str, defense: str, rule: str
) -> None:
    with pytest.raises(RobustCliError, match=rf"defense\.soft_labels: '{defense}' is .* write soft_labels: {rule}"):
        spec_of(data, defense)
    assert spec_of(data, f"{defense}, soft_labels: {rule}").warnings() == []
    assert spec_of("extra: {path: a}", defense).warnings() == []
    assert spec_of(data, "trades").warnings() == []


@pytest.mark.parametrize(("loss", "network"), [(mart().loss, conv_net()), (cifs().loss, gated_net())])
def test_shares_that_no_guard_saw_are_refused_by_the_loss(loss: Any, network: nn.Module) -> None:
    x, y = images(4), labels(4)
    loss(network, Batch(x, y, x))
    with pytest.raises(RobustCliError, match=r"defense\.soft_labels: .* published for whole labels"):
        loss(network, Batch(x, nn.functional.one_hot(y, 10).float(), x))


def test_the_rule_for_shares_is_part_of_the_digest_only_where_there_are_some() -> None:
    whole = spec_of("val_size: 0", "mart")
    assert whole.digest == "c4fa3274", "as before there was a rule"
    assert spec_of("val_size: 0", "mart, soft_labels: expected").digest != whole.digest


@pytest.mark.parametrize(
    ("averaging", "is_said"),
    [
        # Three updates: more than twice 1.25, fewer than twice 2.
        ("{name: ema, decay: 0.2, ramp: false}", False),
        ("{name: ema, decay: 0.5, ramp: false}", True),
        ("{name: ema, decay: 1, ramp: false}", True),
        ("{name: ema, decay: 0.5}", False),
        ("swa", False),
    ],
)
def test_an_average_longer_than_the_run_is_a_warning(averaging: str, is_said: bool) -> None:
    said = [text for text in spec_of("val_size: 0", f"natural, averaging: {averaging}").warnings() if "window" in text]
    assert bool(said) is is_said


@pytest.mark.parametrize("over", ["all", "others"])
def test_smoothing_over_other_classes_needs_two_of_them(over: str, tmp_path: Path) -> None:
    parts = {f"x_{part}": np.zeros((8, 8, 8, 3), dtype=np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.zeros(8, dtype=np.int64) for part in ("train", "test")}
    np.savez(tmp_path / "one.npz", allow_pickle=False, **parts, **labels)
    spec = ExperimentSpec.parse(
        f"""
name: one
data: {{name: npz, path: "{tmp_path / "one.npz"}", label_smoothing: 0.1, smoothing_over: {over}}}
architecture: {{name: small_cnn, width: 4, hidden: 8}}
threat: {{norm: linf, eps: 0.1}}
defense: natural
train: {{epochs: 1, batch_size: 8, lr: 0.01, device: cpu}}
evaluate: {{}}
""",
        "the test",
    )
    if over == "all":
        run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))
        return
    with pytest.raises(RobustCliError, match="smoothing_over: 'others', but the images have one class"):
        run_experiment(spec, tmp_path / "runs", Screen(is_quiet=True))
