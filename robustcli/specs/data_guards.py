"""Combinations of a data set's options with the rest of a spec, refused or worth a word; guards.py calls them."""

from robustcli.registry import Chosen
from robustcli.specs.places import Findings
from robustcli.specs.settings import TrainSettings


def selection_has_images(train: TrainSettings, data: Chosen) -> Findings:
    has_val = data.options.val_size > 0
    if train.select != "last" and not has_val and not train.allow_test_selection:
        yield (
            ("train", "select"),
            f"'{train.select}' needs validation images: set data.val_size, or write select: last, "
            "or allow_test_selection: true (every number is then stamped so)",
        )
    if train.allow_test_selection and (has_val or train.select == "last"):
        yield ("train", "allow_test_selection"), "true, but nothing would be selected on test images; leave it out"


def monitoring_ends(defense: Chosen, data: Chosen) -> Findings:
    images, size = defense.parameters.get("monitor_images"), data.options.train_size
    if images is not None and size is not None and images >= size:
        yield (
            ("defense", "monitor_images"),
            f"{images} of the {size} images of an epoch: what is decided then is never used; write fewer",
        )


def places_of_a_batch_stay(defense: Chosen, data: Chosen) -> Findings:
    if "replays" in defense.parameters and data.options.extra is not None:
        text = f"'{defense.name}' carries its perturbation over from place to place in the batch; leave them out"
        yield ("data", "extra"), text


def smoothing_has_labels(data: Chosen) -> Findings:
    if data.options.smoothing_for == "both" and not data.options.is_smoothed:
        yield ("data", "smoothing_for"), "'both', but no label is smoothed; leave it out"


# Defenses whose equation names the label, and which have a rule of this project where there are shares.
_NAMES_THE_LABEL = ("mart",)


def labels_are_whole(defense: Chosen, data: Chosen) -> Findings:
    options = data.options
    if defense.name in _NAMES_THE_LABEL and (options.mixer.name != "none" or options.is_smoothed):
        text = f"'{defense.name}' is published for whole labels; mixed or smoothed ones follow a rule of this project"
        yield ("defense", "name"), text


def average_has_its_window(defense: Chosen, data: Chosen, train: TrainSettings) -> Findings:
    averaging, images = defense.parameters.get("averaging"), data.options.train_size
    if not isinstance(averaging, Chosen) or images is None or averaging.parameters.get("ramp", True):
        return
    updates = train.epochs * -(-images // train.batch_size) * defense.parameters.get("replays", 1)
    window = 1 / (1 - averaging.parameters["decay"]) if averaging.parameters["decay"] < 1 else float("inf")
    if updates < 2 * window:
        text = f"a window of {window:g} updates, and {updates} in all: the first weights stay in it; write ramp: true"
        yield ("defense", "averaging", "decay"), text
