"""What a spec alone tells of the length of a training, against the data sets and the averages themselves."""

import math

import pytest
from small_training import CPU

from robustcli.data.loading import load_data
from robustcli.optimization.averaging.ema import Ema
from robustcli.registry.catalog import catalog
from robustcli.specs.sizes import batches_of_epoch, images_of_epoch
from robustcli.specs.spec import ExperimentSpec

SPEC = """\
name: sized
data: {DATA}
architecture: small_cnn
threat: {norm: linf, eps: 0.1}
defense: natural
train: {epochs: 1, TRAIN}
"""


def spec_of(data: str, train: str = "batch_size: 128") -> ExperimentSpec:
    return ExperimentSpec.parse(SPEC.replace("DATA", data).replace("TRAIN", train), "the test")


SIZED = [name for name, member in catalog("datasets").items() if member.train_images]


@pytest.mark.parametrize("name", SIZED)
def test_sizes_are_those_that_the_data_sets_document(name: str) -> None:
    member = catalog("datasets")[name]
    assert f"{member.train_images:,}" in member.doc or name == "moving_digits"
    assert f"{member.test_images:,}" in member.doc or name in ("digits", "moving_digits")


@pytest.mark.parametrize("name", ["digits", "moving_digits"])
def test_data_sets_have_what_they_declare(name: str) -> None:
    member, data = catalog("datasets")[name], load_data(spec_of(f"name: {name}").data, CPU)
    assert (data.sizes.train, data.sizes.test) == (member.train_images, member.test_images)
    shape = data.shape
    assert member.image in (None, (shape.channels, shape.height, shape.width))
    assert member.classes in (None, shape.classes)


@pytest.mark.parametrize("name", ["digits", "moving_digits"])
@pytest.mark.parametrize("options", ["val_size: 0", "val_size: 37", "val_size: 37, train_size: 300"])
@pytest.mark.parametrize("train", ["batch_size: 100", "batch_size: 100, drop_last: true"])
def test_batches_are_as_many_as_training_makes(name: str, options: str, train: str) -> None:
    spec = spec_of(f"name: {name}, {options}", train)
    data = load_data(spec.data, CPU)
    assert images_of_epoch(spec.data) == data.sizes.train
    assert batches_of_epoch(spec.data, spec.train) == data.steps_per_epoch(100, spec.train.drop_last)


def test_what_lies_in_a_folder_is_not_known() -> None:
    spec = spec_of("name: image_folder, root: anywhere")
    assert images_of_epoch(spec.data) is None
    assert batches_of_epoch(spec.data, spec.train) is None
    assert images_of_epoch(spec_of("name: image_folder, root: anywhere, train_size: 7").data) == 7


@pytest.mark.parametrize("decay", [0.995, 0.9999, 1.0])
def test_a_ramp_forgets_the_first_weights_however_short_the_run(decay: float) -> None:
    """Why there is no warning of a decay with a ramp: without one the first weights weigh 0.9999 after one update."""
    average = Ema(decay=decay)
    for updates in (1, 10, 100):
        assert math.prod(average.decay_at(t) for t in range(updates)) <= 0.1
    assert average.decay_at(99) == pytest.approx(1 - 9 / 109)
