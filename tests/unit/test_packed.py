"""Packed images equal those of the folder, and damage is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data import packing
from robustcli.data.datasets import Source
from robustcli.data.datasets.image_folder import image_folder
from robustcli.data.datasets.packed import packed, read_manifest
from robustcli.data.packing import pack
from robustcli.data.splits import Data, prepare
from robustcli.errors import RobustCliError
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """JPEG and PNG files of several sizes in two classes."""
    random = np.random.RandomState(0)
    for part, count in (("train", 13), ("val", 7)):
        for name in ("caf\u00e9", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 256, (9 + number, 12, 3)).astype(np.uint8)
                suffix = ".png" if number % 3 else ".JPEG"
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}{suffix}")
    return str(tmp_path / "images")


def data_of(source: Source) -> Data:
    return prepare(source, val_size=4, train_size=None, device=CPU, workers=2)


def batches(data: Data) -> list[torch.Tensor]:
    order = data.epoch(torch.Generator().manual_seed(0), 5, False)
    noise = StreamNoise.on(CPU).reseed(0, "augment")
    taken = data.train_batches(order, 5, drop_last=False, augment=Augment(crop=1, flip=True), rng=noise)
    return [images for images, _ in taken]


@pytest.mark.parametrize("size", [8, None])
@pytest.mark.parametrize("memory_mib", [0, 100])
def test_packed_images_are_those_of_the_folder(folder: str, tmp_path: Path, size: int | None, memory_mib: int) -> None:
    # Shards of 1,000 bytes hold five images of 8 x 8 pixels, so a batch comes from several.
    manifest = pack(folder, tmp_path / "out", size, shard_bytes=1000)
    assert len(manifest.parts["train"].shards) > 2
    root = str(tmp_path / "out")
    one = data_of(image_folder(root=folder, size=8, memory_mib=100 if size else memory_mib))
    other = data_of(packed(root=root, size=8, memory_mib=memory_mib))
    assert (one.digest, one.mean, one.std, one.decode, one.sizes, list(one.classes)) == (
        other.digest,
        other.mean,
        other.std,
        other.decode,
        other.sizes,
        list(other.classes),
    )
    for first, second in zip(batches(one), batches(other), strict=True):
        assert torch.equal(first, second)
    one = prepare(image_folder("test", root=folder, size=8), val_size=0, train_size=None, device=CPU, workers=0)
    other = prepare(packed("test", root=root, size=8), val_size=0, train_size=None, device=CPU, workers=0)
    assert (one.digest, one.test_digest, one.decode) == (other.digest, other.test_digest, other.decode)
    for first, second in zip(one.evaluation("test"), other.evaluation("test"), strict=True):
        assert torch.equal(first[:], second[:])


@pytest.mark.parametrize("size", [8, None])
def test_names_that_are_not_utf8_stay_the_same(folder: str, tmp_path: Path, size: int | None) -> None:
    """Of a class and of a file, as old archives have them."""
    for part in ("train", "val"):
        odd = os.fsdecode(b"caf\xe9")
        os.rename(f"{folder}/{part}/caf\u00e9", f"{folder}/{part}/{odd}")
        os.rename(f"{folder}/{part}/{odd}/1.png", f"{folder}/{part}/{odd}/{odd}.png")
    pack(folder, tmp_path / "out", size)
    one, other = image_folder(root=folder, size=8), packed(root=str(tmp_path / "out"), size=8)
    assert list(one.classes) == list(other.classes) == [os.fsdecode(b"caf\xe9"), "dog"]
    assert data_of(one).digest == data_of(other).digest


def test_a_folder_without_train_part_is_packed_for_evaluation(folder: str, tmp_path: Path) -> None:
    (Path(folder) / "train").rename(tmp_path / "elsewhere")
    pack(folder, tmp_path / "out", 8)
    one, other = image_folder("test", root=folder, size=8), packed("test", root=str(tmp_path / "out"))
    assert torch.equal(one.test.read(torch.arange(14)), other.test.read(torch.arange(14)))
    with pytest.raises(RobustCliError, match="has no train part, so it is for evaluation only"):
        packed(root=str(tmp_path / "out"))


def test_an_interrupted_run_leaves_nothing_to_read_and_is_started_again(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(folder, out, 8, shard_bytes=200)
    with pytest.raises(RobustCliError, match=r"has no pack\.json; expected a folder that `robust pack` finished"):
        packed(root=str(out))
    pack(folder, out, 8)
    assert sorted(path.name for path in out.glob("*.bin")) == ["test-00000.bin", "train-00000.bin"]
    packing.check(out, read_manifest(out))
    with pytest.raises(RobustCliError, match="holds packed images already"):
        pack(folder, out, 8)


def test_a_folder_with_other_files_is_not_touched(folder: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(RobustCliError, match=r"holds other files, such as thesis\.tex"):
        pack(folder, tmp_path / "out", 8)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "test-00000.tar", "train-notes.txt"])
def test_files_of_other_programs_are_not_taken_for_its_own(name: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    with pytest.raises(RobustCliError, match=f"holds other files, such as {name}"):
        pack(folder, tmp_path / "out", 8)
    assert (tmp_path / "out" / name).exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _altered(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[-10] ^= 255
    path.write_bytes(contents)


def _newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train-00000.bin", Path.unlink, r"train-00000\.bin: is missing"),
        ("test-00000.bin", _cut, r"test-00000\.bin: has \d+ bytes; pack\.json states \d+ bytes"),
        ("train.npz", _altered, r"train\.npz: cannot be read \(.*\); pack the folder again"),
        ("pack.json", _newer, "format: input should be 1"),
        ("pack.json", _cut, "not JSON"),
    ],
)
def test_damage_is_named(folder: str, tmp_path: Path, file: str, damage: Callable[[Path], None], message: str) -> None:
    pack(folder, tmp_path / "out", 8)
    damage(tmp_path / "out" / file)
    with pytest.raises(RobustCliError, match=message):
        packed(root=str(tmp_path / "out"))


def test_the_check_finds_a_changed_byte(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = pack(folder, out, None)
    packing.check(out, manifest)
    shard = out / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RobustCliError, match=r"train-00000\.bin: the contents have changed"):
        packing.check(out, manifest)


def test_sizes_that_are_missing_or_differ_are_refused(folder: str, tmp_path: Path) -> None:
    pack(folder, tmp_path / "files", None)
    pack(folder, tmp_path / "pixels", 8)
    with pytest.raises(RobustCliError, match=r"data\.size: .* holds image files of any size; set the size"):
        packed(root=str(tmp_path / "files"))
    with pytest.raises(RobustCliError, match=r"data\.size: 9; .* holds pixels of 8 x 8"):
        packed("test", root=str(tmp_path / "pixels"), size=9)
    assert len(packed(root=str(tmp_path / "pixels")).train.labels) == 26


def test_a_packed_file_that_cannot_be_decoded_is_named(folder: str, tmp_path: Path) -> None:
    (Path(folder) / "train" / "dog" / "1.png").write_bytes(b"text")
    with pytest.raises(RobustCliError, match=r"dog/1\.png: cannot be decoded as an image \(its format is not known\)"):
        pack(folder, tmp_path / "pixels", 8)
    pack(folder, tmp_path / "files", None)
    with pytest.raises(RobustCliError, match=r"files: train/dog/1\.png: cannot be decoded"):
        packed(root=str(tmp_path / "files"), size=8)
