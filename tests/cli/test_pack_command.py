"""`robust pack`, and training and evaluation on packed images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from shell import TINY, Robust


def _folder(path: Path) -> Path:
    random = np.random.RandomState(0)
    for part in ("train", "test"):
        for name in "ab":
            (path / part / name).mkdir(parents=True)
            for number in range(20):
                image = Image.fromarray(random.randint(0, 256, (8, 8, 3)).astype(np.uint8))
                image.save(path / part / name / f"{number}.jpg")
    return path


def test_training_and_evaluation_on_packed_images_equal_those_on_the_folder(robust: Robust, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "images")
    robust("pack", folder, "packed", "--size", 8).require(0, "40 train and 40 test images of 8 x 8 pixels of 2 classes")
    robust("pack", "packed", "--check").require(0, "all digests match")
    (tmp_path / "tiny.yaml").write_text(
        TINY.replace("name: digits, val_size: 50, train_size: 128", "name: NAME, val_size: 8").replace(
            "examples: 60", "examples: 30"
        )
    )
    found = []
    for name, root, size in (("image_folder", folder, ["data.size=8"]), ("packed", "packed", [])):
        text = (tmp_path / "tiny.yaml").read_text().replace("NAME", f"{name}, root: '{root}'")
        (tmp_path / f"{name}.yaml").write_text(text)
        robust("train", f"{name}.yaml", "train.batch_size=16", *size, "--runs", f"runs_{name}", "--quiet").require(0)
        (results,) = (tmp_path / f"runs_{name}").glob("*/*/results.json")
        stored = json.loads(results.read_text())
        evaluations = {key: (each["survivors"], each["fingerprint"]["weights"], each["fingerprint"]["images"])
                       for key, each in stored["evaluations"].items()}  # fmt: skip
        found.append((stored["data"]["digest"], evaluations))
    assert found[0] == found[1]


def test_bad_input_to_pack_is_one_error(robust: Robust, tmp_path: Path) -> None:
    robust("pack", tmp_path / "nothing", "out").require(2, "FOLDER: ", "there is no folder")
    robust("pack", _folder(tmp_path / "images")).require(2, "OUT: missing")
    robust("pack", tmp_path / "images", "out", "--check").require(2, "--check: reads FOLDER and writes nothing")
    robust("pack", tmp_path / "images", "--check").require(2, "FOLDER: ", "has no pack.json")
    (tmp_path / "file").touch()
    robust("pack", tmp_path / "images", "file").require(2, "file: is a file; expected a new or empty folder")
    (tmp_path / "images" / "test" / "a" / "0.jpg").write_bytes(b"text")
    robust("pack", tmp_path / "images", "out", "--size", 8).require(2, "0.jpg: cannot be decoded")
