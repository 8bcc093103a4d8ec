"""A batch too small for batch norms is refused before training starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import small_data

from robustcli.errors import RobustCliError
from robustcli.evaluation.watcher import Watcher
from robustcli.specs.settings import Augment
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import parse_yaml, to_yaml
from robustcli.store.runs import Run
from robustcli.threat.noise import StreamNoise
from robustcli.workflows.train import run_experiment


def spec_of(text: str, norm: str = "linf") -> ExperimentSpec:
    return ExperimentSpec.check(
        parse_yaml(
            "name: small\ndata: {name: digits, val_size: 20, train_size: 33}\n"
            f"threat: {{norm: {norm}, eps: 0.1}}\n"
            "evaluate: {clean: {name: clean, examples: 8}}\n"
            "train: {epochs: 1, batch_size: 32, lr: 1e-3, optimizer: adam, check_examples: 8, check_steps: 1}\n" + text,
            "test",
        )
    )


def run(spec: ExperimentSpec, root: Path) -> None:
    run_experiment(spec, root, Watcher())


@pytest.mark.parametrize(
    "text",
    [
        # Its last feature maps have one pixel.
        "architecture: {name: resnet18, width: 4}\ndefense: {name: pgd_at, steps: 1}",
        # The network could take one image, the batch norm of the head could not.
        "architecture: {name: small_cnn}\ndefense: {name: dial, steps: 1}",
    ],
)
def test_a_last_batch_of_one_image_is_refused_before_training(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(Run, "log", lambda _, record: logged.append(record))
    spec = spec_of(text)
    assert any("last batch of an epoch has 1 image" in warning for warning in spec.warnings())
    with pytest.raises(RobustCliError, match=r"train\.batch_size: 33 training images in batches of 32 leave .* of 1"):
        run(spec, tmp_path)
    assert not logged


def test_a_last_batch_of_one_image_trains_where_batch_norms_can_take_it(tmp_path: Path) -> None:
    run(spec_of("architecture: {name: small_cnn}\ndefense: {name: pgd_at, steps: 1}"), tmp_path)


def test_a_last_batch_of_one_image_trains_with_an_attack_for_l2_only(tmp_path: Path) -> None:
    attack = "attack: {name: carlini_wagner, steps: 2, searches: 1}"
    run(spec_of("architecture: {name: small_cnn}\ndefense: {name: pgd_at, " + attack + "}", "l2"), tmp_path)


@pytest.mark.parametrize("averaging", ["{name: swa, start_epoch: 0}", "{name: ema, buffers: re_estimate}"])
def test_statistics_of_an_average_do_without_a_last_batch_of_one_image(averaging: str, tmp_path: Path) -> None:
    """Training drops this batch, and the pass over the clean images would fail after the first epoch."""
    spec = spec_of(
        f"architecture: {{name: resnet18, width: 4}}\ndefense: {{name: pgd_at, steps: 1, averaging: {averaging}}}"
    )
    run(replace(spec, train=replace(spec.train, drop_last=True)), tmp_path)


@pytest.mark.parametrize(
    "evaluator",
    [
        "{name: transfer_attack, source: SOURCE, attack: fgsm}",
        "{name: worst_case, members: [{name: from_file, path: SOURCE}]}",
        "{name: transfer_attack, source: FOLDER, attack: fgsm}",
    ],
)
def test_a_file_that_only_an_evaluation_reads_must_be_there_before_training(evaluator: str, tmp_path: Path) -> None:
    """Afterwards the spec could only be changed by training again."""
    text = "architecture: small_cnn\ndefense: {name: pgd_at, steps: 1}"
    plain = spec_of(text).to_plain()
    written = evaluator.replace("SOURCE", str(tmp_path / "none.npz")).replace("FOLDER", str(tmp_path))
    plain["evaluate"]["other"] = parse_yaml(written, "test").value
    spec = ExperimentSpec.parse(to_yaml(plain), "test")
    with pytest.raises(RobustCliError, match=r"evaluate\.other: .*(none\.npz: cannot be read|a folder without a run)"):
        run(spec, tmp_path / "runs")
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("batch_size", [3, 7, 10, 19, 20, 21])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("halves", [False, True])
def test_the_smallest_batch_is_the_smallest_that_training_reads(batch_size: int, drop_last: bool, halves: bool) -> None:
    data, generator = small_data(), torch.Generator()
    if drop_last and batch_size > data.sizes.train:
        return
    batches = data.train_batches(
        data.epoch(generator, batch_size, drop_last, split_in_two=halves),
        batch_size,
        drop_last=drop_last,
        augment=Augment(),
        rng=StreamNoise.on(torch.device("cpu")),
    )
    assert data.smallest_batch(batch_size, drop_last, split_in_two=halves) == min(len(x) for x, *_ in batches)
