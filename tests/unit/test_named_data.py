"""Images named on the command line."""

from pathlib import Path
from typing import Any

import pytest

from robustcli.errors import RobustCliError
from robustcli.models.named_data import spec_of_images


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifar10", {"name": "cifar10"}),
        ("cifar10:/data", {"name": "cifar10", "root": "/data"}),
        ("npz:images", {"name": "npz", "path": "images"}),
        ("image_folder:~/images", {"name": "image_folder", "root": "~/images", "size": 24}),
        ("imagenet_c:here", {"name": "imagenet_c", "root": "here"}),
    ],
)
def test_a_name_and_a_path_stand_for_a_data_set(text: str, expected: dict[str, Any]) -> None:
    assert spec_of_images(text, 24) == expected


def test_a_folder_whose_name_has_a_colon_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10:old"
    folder.mkdir()
    assert spec_of_images(str(folder), None) == {"name": "image_folder", "root": str(folder)}


def test_a_path_behind_an_unknown_name_is_proposed(tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match=f"'imagenet:{tmp_path}' is not a .*; write --data {tmp_path}$"):
        spec_of_images(f"imagenet:{tmp_path}", None)


@pytest.mark.parametrize("text", ["digits:here", "cifar10:", "imagenet:nowhere"])
def test_other_names_with_a_colon_are_refused(text: str) -> None:
    with pytest.raises(RobustCliError, match=f"--data: '{text}' is not a data set"):
        spec_of_images(text, None)
