"""Guards on data: combinations of its options with the rest of a spec."""

from collections.abc import Mapping
from typing import get_args

from robustcli.registry.registry import MemberSpec
from robustcli.specs.places import Findings, attacks_inside, evaluators_inside, guard
from robustcli.specs.settings import TrainSettings
from robustcli.specs.sizes import batches_of_epoch, images_of_epoch


@guard("refuse")
def selection_has_images(train: TrainSettings, data: MemberSpec) -> Findings:
    has_val = data.options.val_size > 0
    if train.select != "last" and not has_val and not train.allow_test_selection:
        yield (
            ("train", "select"),
            f"'{train.select}' needs validation images: set data.val_size, or write select: last, "
            "or allow_test_selection: true (every number is then stamped so)",
        )
    if train.allow_test_selection and (has_val or train.select == "last"):
        yield ("train", "allow_test_selection"), "true, but nothing would be selected on test images; leave it out"


@guard("refuse")
def monitoring_ends(defense: MemberSpec, data: MemberSpec, train: TrainSettings) -> Findings:
    batches = batches_of_epoch(data, train)
    text = None if batches is None else unused_monitoring(defense, batches, train.batch_size)
    if text is not None:
        yield ("defense", "monitor_images"), text


def unused_monitoring(defense: MemberSpec, batches: int, batch_size: int) -> str | None:
    """Return why the attack of a defense could never be adapted, with this number of batches in an epoch, or None."""
    images = defense.parameters.get("monitor_images")
    if images is None or -(-images // batch_size) < batches:
        return None
    text = f"{images} images are {-(-images // batch_size)} batches, and an epoch has {batches}"
    hint = f"write at most {(batches - 1) * batch_size}" if batches > 1 else "use a smaller train.batch_size"
    return f"{text}: what is decided then is never used; {hint}"


@guard("warn")
def last_batch_has_images(data: MemberSpec, train: TrainSettings) -> Findings:
    images = images_of_epoch(data)
    is_one = images is not None and (images - 1) % train.batch_size == 0 and not train.drop_last
    if is_one and not (data.options.extra and int(data.options.extra.share * train.batch_size)):
        text = "the last batch of an epoch has 1 image, which is too few for batch statistics"
        hint = "write drop_last: true" if train.batch_size > 1 else "use at least 2"
        yield ("train", "batch_size"), f"{train.batch_size}: {text}; {hint}"


@guard("refuse")
def places_of_a_batch_stay(defense: MemberSpec, data: MemberSpec) -> Findings:
    if "replays" in defense.parameters and data.options.extra is not None:
        text = f"'{defense.name}' carries its perturbation over from place to place in the batch; leave them out"
        yield ("data", "extra"), text


@guard("refuse")
def smoothing_has_labels(data: MemberSpec) -> Findings:
    if data.options.smoothing_for == "both" and not data.options.is_smoothed:
        yield ("data", "smoothing_for"), "'both', but no label is smoothed; leave it out"


@guard("refuse")
def crops_are_cut(data: MemberSpec) -> Findings:
    if data.parameters.get("crop_from") != "whole":
        return
    if not data.options.augment.resized_crop:
        yield ("data", "crop_from"), "'whole', but augment.resized_crop is 0, so nothing is cut; leave it out"
    if data.options.extra is not None:
        yield ("data", "crop_from"), "'whole', but extra images have no whole images; write square"


@guard("refuse")
def labels_are_whole(defense: MemberSpec, data: MemberSpec) -> Findings:
    if defense.parameters.get("soft_labels") != "refuse":
        return
    is_mixed = data.options.mixer.member.mixes_labels
    found = f"'{data.options.mixer.name}' mixes them" if is_mixed else "smoothing shares them out"
    if is_mixed or data.options.is_smoothed:
        _, *rules = get_args(defense.member.parameters["soft_labels"].annotation)
        text = f"'{defense.name}' is published for whole labels, and {found}; leave that out, or write"
        yield ("defense", "soft_labels"), f"{text} soft_labels: {' or '.join(rules)}, a rule of this project"


def unverified(defense: MemberSpec, data: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> dict[str, str]:
    """Return why some evaluations prove little: training can hide gradients, and all their attacks need gradients.

    Returns:
        Reasons by the key of the evaluation; empty if an evaluation is not deceived by gradient masking.
    """
    options = data.options
    if any(evaluator.member.sees_through_masking for _, evaluator in evaluators_inside(evaluate, ())):
        return {}
    if options.is_smoothed or defense.parameters.get("label_smoothing"):
        cause = "smoothed"
    elif options.mixer.member.mixes_labels:
        cause = "mixed"
    else:
        return {}
    text = f"unverified: training with {cause} labels can hide gradients from attacks that need them; add autoattack"
    return {key: text for key, chosen in evaluate.items() if any(attacks_inside(chosen, ()))}


@guard("note")
def soft_labels_are_verified(defense: MemberSpec, data: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Findings:
    for key, text in unverified(defense, data, evaluate).items():
        yield ("evaluate", key), text


@guard("warn")
def average_has_its_window(defense: MemberSpec, data: MemberSpec, train: TrainSettings) -> Findings:
    averaging, batches = defense.parameters.get("averaging"), batches_of_epoch(data, train)
    # With a ramp the window is at most a ninth of the updates done, so it is never too long.
    if not isinstance(averaging, MemberSpec) or batches is None or averaging.parameters.get("ramp", True):
        return
    warmup, decay = averaging.parameters["warmup"], averaging.parameters["decay"]
    updates = int((train.epochs - warmup) * batches * defense.parameters.get("replays", 1))
    window = 1 / (1 - decay) if decay < 1 else float("inf")
    if 0 < updates < 2 * window:
        since = "after the warm-up" if warmup else "in all"
        text = f"a window of {window:g} updates, and {updates} {since}: the first weights stay in it; write ramp: true"
        yield ("defense", "averaging", "decay"), text
