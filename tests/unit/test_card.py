"""RobustBench's card: its keys, and every reason for which an accuracy may not be claimed."""

from pathlib import Path
from typing import Any

import pytest
from stored_results import evaluation

from robustcli.errors import RobustCliError
from robustcli.evaluation.per_image import ImageResult
from robustcli.store.evaluations import Evaluation, Threat
from robustcli.workflows.export.card import architecture_name, card, eps_text, percent, threat_name
from robustcli.workflows.export.claims import missing_for_autoattack, missing_images
from robustcli.workflows.export.metadata import EXAMPLE, Metadata, dataset_of, read_metadata

METADATA = Metadata(
    link="https://example.org",
    name="On the Café",
    authors="Zoë van Dér, Second Author",
    venue="ICML 2026",
    additional_data=False,
    reported="",
)
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def result(stages: tuple[str, ...] = STAGES, total: int = 10_000, correct: int = 5342, **changed: Any) -> Evaluation:
    """A stored AutoAttack on the whole of CIFAR-10's test set, as the leaderboard asks for it."""
    costs = {"is_black_box": False, "entered": 0, "broken": 0, "forwards": 0, "gradients": 0, "seconds": 0.0}
    right = min(correct, total)
    plain = {
        "evaluator": "autoattack",
        "parameters": parameters(),
        "stages": [{"name": name, **costs} for name in stages],
        **changed,
    }
    return Evaluation.model_validate(evaluation("1" * right + "0" * (total - right), **plain))


def parameters(**changed: Any) -> dict[str, Any]:
    return {
        "version": "standard",
        "attacks": None,
        "engine": "native",
        "precision": "fp32",
        "sample_first": None,
        "batch_size": 250,
        **changed,
    }


def missing(
    found: Evaluation,
    norm: str = "linf",
    eps: str = "8/255",
    dataset: str = "cifar10",
    images: int = 10_000,
    classes: int = 10,
    metadata: Metadata = METADATA,
) -> list[str]:
    threat = Threat(norm=norm, eps=eps)
    return missing_for_autoattack(
        found, threat=threat, dataset=dataset, images=images, classes=classes, metadata=metadata
    )


def noted(**changed: Any) -> Metadata:
    return Metadata(**{**METADATA.__dict__, **changed})


def test_a_result_that_meets_the_leaderboard_rules_may_be_claimed() -> None:
    assert missing(result()) == []
    assert missing(result(parameters=parameters(attacks=list(STAGES), engine="native"))) == []
    assert missing(result(("package",), parameters=parameters(engine="reference"))) == []
    assert missing(result(norm="l2", eps="0.5"), "l2", "0.5") == []
    # Of data sets without a leaderboard every radius is their own.
    assert missing(result(eps="0.1", total=360), eps="0.1", dataset="digits", images=360) == []


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (result(total=9_999), "images: the first 9,999 of 10,000 test images; expected all"),
        (result(eps="4/255"), "threat: linf 4/255; the card is about linf 8/255"),
        (result(norm="l2"), "threat: l2 8/255; the card is about linf 8/255"),
        (result(evaluator="attack", parameters={}), "evaluator: attack; expected autoattack"),
        (result(parameters=parameters(version="plus")), "version: plus; expected standard"),
        (result(parameters=parameters(precision="fast")), "precision: fast; expected fp32"),
        (result(parameters=parameters(sample_first=500)), "sample_first: 500; expected null"),
        (
            result(STAGES[:2], parameters=parameters(attacks=list(STAGES[:2]))),
            "attacks: apgd-ce, apgd-t; expected apgd-ce, apgd-t, fab-t, square",
        ),
        (result(()), "attacks: none; expected apgd-ce, apgd-t, fab-t, square"),
        (
            result(("package",), parameters=parameters(attacks=["square"], engine="reference")),
            "attacks: square; expected apgd-ce, apgd-t, fab-t, square",
        ),
    ],
)
def test_each_lack_is_named_and_nothing_else(found: Evaluation, reason: str) -> None:
    assert missing(found) == [reason]


def test_the_package_runs_other_attacks_where_classes_are_few() -> None:
    package = result(("package",), total=360, parameters=parameters(engine="reference"))
    assert missing(package, dataset="digits", images=360, classes=4) == []
    assert missing(package, dataset="digits", images=360, classes=3) == [
        "attacks: not all of apgd-ce, apgd-t, fab-t, square, which need 4 classes; there are 3"
    ]


def test_all_missing_requirements_are_named_at_once() -> None:
    found = missing(result(total=5, parameters=parameters(version="rand", precision="fast")))
    assert [text.partition(":")[0] for text in found] == ["images", "version", "precision"]


def test_a_test_set_of_another_size_is_not_the_leaderboards() -> None:
    assert missing_images("imagenet", 5_000, 5_000) == []
    assert missing_images("imagenet", 50_000, 50_000) == [
        "images: 50,000 of imagenet; the leaderboard's test set has 5,000"
    ]
    assert missing_images("digits", 360, 360) == []


def test_radii_are_those_of_the_leaderboard() -> None:
    wide = missing(result(eps="16/255"), eps="16/255")
    assert wide == ["threat: linf 16/255; the leaderboards of cifar10 have linf 8/255, l2 0.5"]
    hundred = missing(result(norm="l2", eps="0.5"), "l2", "0.5", "cifar100")
    assert hundred == ["threat: l2 0.5; the leaderboards of cifar100 have linf 8/255"]
    assert missing(result(eps="0.031"), eps="0.031") == [
        "threat: linf 0.031 in place of 8/255; the metadata's footnote must say so"
    ]
    assert missing(result(eps="0.031"), eps="0.031", metadata=noted(footnote="eps 0.031 for 8/255.")) == []


def lines(clean: int, total: int) -> list[ImageResult]:
    return [ImageResult(i, 1, 1 if i < clean else 0, "" if i < clean else "clean", 1, 0.0, 0.0) for i in range(total)]


def made(metadata: Metadata, left_out: tuple[str, ...] = (), **changed: Any) -> dict[str, Any]:
    threat = Threat(norm="linf", eps="8/255")
    return card(
        metadata,
        result(**changed),
        lines(8534, 10_000),
        threat=threat,
        dataset="cifar10",
        architecture="WideResNet-34-10",
        left_out=left_out,
    )


def test_the_card_has_its_keys_in_their_order() -> None:
    assert list(made(noted(external="52.10", footnote="A note.")).items()) == [
        ("link", "https://example.org"),
        ("name", "On the Café"),
        ("authors", "Zoë van Dér, Second Author"),
        ("additional_data", False),
        ("number_forward_passes", 1),
        ("dataset", "cifar10"),
        ("venue", "ICML 2026"),
        ("architecture", "WideResNet-34-10"),
        ("eps", "8/255"),
        ("clean_acc", "85.34"),
        ("reported", ""),
        ("autoattack_acc", "53.42"),
        ("external", "52.10"),
        ("footnote", "A note."),
        ("unreliable", False),
    ]


def test_keys_are_left_out_and_a_suspicion_makes_it_unreliable() -> None:
    whole, less = made(METADATA), made(METADATA, ("autoattack_acc",), suspicions=["zero gradients"])
    assert set(whole) - set(less) == {"autoattack_acc"}
    assert whole["footnote"] is None
    assert "external" not in whole
    assert (whole["unreliable"], less["unreliable"]) == (False, True)


def test_an_external_accuracy_is_a_lower_one() -> None:
    with pytest.raises(RobustCliError, match=r"external: 53.42 is not below autoattack_acc, which is 53.42"):
        made(noted(external="53.42"))
    assert made(noted(external="53.42"), ("autoattack_acc",))["external"] == "53.42"


def test_percentages_have_two_decimals() -> None:
    assert [percent(*pair) for pair in ((5342, 10_000), (1, 3), (2, 3), (360, 360), (0, 7))] == [
        "53.42", "33.33", "66.67", "100.00", "0.00",
    ]  # fmt: skip


def test_radii_are_255ths_where_they_are_no_short_decimals() -> None:
    found = [eps_text(*pair) for pair in (("linf", "8/255"), ("linf", "2/85"), ("linf", "0.031"), ("l2", "128/255"))]
    assert found == ["8/255", "6/255", "0.031", "128/255"]
    assert (eps_text("l2", "0.5"), eps_text("linf", "1/3")) == ("0.5", "85/255")
    assert (eps_text("l2", "1/3"), eps_text("linf", "1/7")) == ("1/3", "1/7")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("wide_resnet", {"depth": 34, "widen": 10}, "WideResNet-34-10"),
        ("preact_resnet18", {"width": 64}, "PreActResNet-18"),
        ("preact_resnet18", {"width": 16}, "PreActResNet-18 (width 16)"),
        ("resnet152", {"width": 64}, "ResNet-152"),
        ("resnet18", {"width": 64, "norm": "batch", "strides": [1, 2, 2, 2], "upsample": 1}, "ResNet-18"),
        ("resnet18", {"width": 64, "strides": [1, 1, 2, 2]}, "ResNet-18 (strides 1122)"),
        ("wide_resnet", {"depth": 28, "widen": 10, "norm": "conv"}, "WideResNet-28-10 (norm conv)"),
        ("vgg16", {"width": 32, "downsample": "flc"}, "VGG-16 (width 32, downsample flc)"),
        ("small_cnn", {"width": 16}, "small_cnn"),
        ("torchvision", {"model": "resnet50"}, "ResNet-50"),
        ("torchvision", {"model": "wide_resnet50_2"}, "WideResNet-50-2"),
        ("torchvision", {"model": "convnext_large"}, "ConvNeXt-L"),
        ("torchvision", {"model": "swin_t"}, "Swin-T"),
        ("torchvision", {"model": "vit_b_16"}, "vit_b_16"),
        ("torchvision", {"model": "resnet18", "stem": "small"}, "ResNet-18 (stem small)"),
        ("timm", {"model": "resnet50d", "stem": "as_it_is"}, "resnet50d"),
        ("wide_resnet", {"depth": 70, "widen": 16, "activation": "silu", "form": "deepmind"}, "WideResNet-70-16"),
    ],
)
def test_architectures_are_named_as_cards_name_them(name: str, settings: dict[str, Any], words: str) -> None:
    assert architecture_name(name, settings) == words


def test_cards_are_named_after_author_year_and_title() -> None:
    assert METADATA.card_name == "Der2026On"
    assert noted(model_id="Der2026On_WRN-34-10").card_name == "Der2026On_WRN-34-10"
    assert noted(venue="ICLR 2025 (arXiv, 2024)").card_name == "Der2024On"


def test_only_images_of_a_users_own_are_named_by_the_user() -> None:
    assert dataset_of("cifar10", METADATA) == dataset_of("cifar10", noted(dataset="cifar10")) == "cifar10"
    assert dataset_of("image_folder", noted(dataset="imagenet")) == "imagenet"
    for source, said, message in (
        ("cifar10", "cifar100", "the evaluation is on cifar10"),
        ("npz", None, "npz does not name the data set"),
        ("image_folder", "cifar10", "which may differ from the published cifar10"),
        ("npz", "../there", "not the name of a folder"),
    ):
        with pytest.raises(RobustCliError, match=message):
            dataset_of(source, noted(dataset=said))


def test_norms_without_a_leaderboard_are_refused() -> None:
    assert (threat_name("linf"), threat_name("l2")) == ("Linf", "L2")
    with pytest.raises(RobustCliError, match="norm l1: RobustBench has no such threat; expected linf or l2"):
        threat_name("l1")


def test_the_example_is_a_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "meta.yaml"
    path.write_text(EXAMPLE)
    assert read_metadata(path).card_name == "Author2026Title"


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "meta.yaml"
    path.write_text(text)
    with pytest.raises(RobustCliError) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)
    assert EXAMPLE in str(caught.value)
    return str(caught.value)


def test_without_a_file_the_keys_are_listed_with_an_example() -> None:
    with pytest.raises(RobustCliError) as caught:
        read_metadata(None)
    assert "missing link, name, authors, venue, additional_data, reported;" in str(caught.value)
    assert EXAMPLE in str(caught.value)


def test_all_missing_keys_are_listed_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "link: x\nname: A title\n").partition("an example")[0]
    for key in ("authors", "venue", "additional_data", "reported"):
        assert f"  {key}: missing; the metadata needs it (" in message
    assert "  link" not in message
    assert "expected keys and values" in refused(tmp_path, "- 1\n")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("venue:", "venu:", "venu"),
        ("additional_data: false", "additional_data: 3", "additional_data: 3"),
        ('reported: "53.42"', "reported: 53.42", "reported: 53.42"),
        ('reported: "53.42"', 'reported: "around 50"', "reported: 'around 50' is not a percentage"),
        ("external: null", 'external: "101"', "external: '101' is not a percentage"),
        ("external: null", 'external: ""', "external: is empty"),
        ('"Title of the paper"', '" "', "name: is empty"),
        ('"arXiv, Jan 2026"', '"arXiv"', "venue: 'arXiv' has no year"),
        ('"Title of the paper"', '"对抗训练"', "has no Latin letters"),
        ("model_id: null", "model_id: a/b", "model_id: 'a/b' is not the name of a file"),
    ],
)
def test_values_that_a_card_cannot_have_are_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in EXAMPLE
    assert problem in refused(tmp_path, EXAMPLE.replace(old, new)).partition("an example")[0]
