"""TinyImageNet is read as it is unpacked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data.datasets.image_folder import image_folder
from robustcli.errors import RobustCliError


def _image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(path, quality=100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, with the boxes, lists and unlabeled test part of the original."""
    for label, name in enumerate(("n01", "n02")):
        for number in range(3):
            _image(tmp_path / "train" / name / "images" / f"{name}_{number}.JPEG", 100 * label)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("x\n")
    lines = []
    for number, label in enumerate((1, 0, 1, 1)):
        _image(tmp_path / "val" / "images" / f"val_{number}.JPEG", 100 * label)
        lines.append(f"val_{number}.JPEG\tn0{label + 1}\t0\t0\t62\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    _image(tmp_path / "test" / "images" / "test_0.JPEG", 200)
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    return tmp_path


def test_both_parts_have_the_labels_of_folders_and_annotations(folder: Path) -> None:
    source = image_folder(root=str(folder), size=8)
    assert source.classes == ["n01", "n02"]
    assert source.train.labels.tolist() == [0] * 3 + [1] * 3
    assert sorted(source.test.labels.tolist()) == [0, 1, 1, 1]
    for part in (source.train, source.test):
        levels = part.read(torch.arange(len(part.labels)))[:, 0, 0, 0]
        assert torch.equal(levels.long(), 100 * part.labels)
    test = image_folder("test", root=str(folder), size=8)
    assert test.classes == ["n01", "n02"]
    assert torch.equal(test.test.labels, source.test.labels)


def test_an_image_that_is_not_annotated_or_has_an_unknown_class_is_named(folder: Path) -> None:
    _image(folder / "val" / "images" / "val_9.JPEG", 0)
    with pytest.raises(RobustCliError, match=r"val_9\.JPEG: is not listed in .*val_annotations\.txt"):
        image_folder(root=str(folder), size=8)
    with (folder / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_9.JPEG\tn07\t0\t0\t1\t1\n")
    with pytest.raises(RobustCliError, match=r"val_9\.JPEG: has the class 'n07', which is not in train"):
        image_folder(root=str(folder), size=8)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG n01\n")
    with pytest.raises(RobustCliError, match=r"line 1: found 'val_0\.JPEG n01'; expected FILE, CLASS"):
        image_folder("test", root=str(folder), size=8)
