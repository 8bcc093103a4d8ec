"""Images that are decoded while training runs: crops of whole images, reduced decoding, reading ahead."""

import threading
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data.datasets import Crops
from robustcli.data.datasets.decoding import decode
from robustcli.data.datasets.image_folder import image_folder
from robustcli.data.datasets.packed import packed
from robustcli.data.packing import pack
from robustcli.data.read_ahead import ReadAhead
from robustcli.data.splits import Data, prepare
from robustcli.errors import RobustCliError
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

CPU = torch.device("cpu")
CROP = Augment(resized_crop=0.2, flip=True)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture, so that resampling has something to keep."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, suffix: str = "png") -> bytes:
    stream = BytesIO()
    image.save(stream, suffix)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for part in ("train", "test"):
        for label, name in enumerate("ab"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(9):
                path = tmp_path / "images" / part / name / f"{number}.jpg"
                picture(40 + number, 30, 10 * number + label).save(path)
    return str(tmp_path / "images")


def data_of(folder: str, **settings: object) -> Data:
    source = image_folder(root=folder, size=16, memory_mib=0, **settings)  # type: ignore[arg-type]
    return prepare(source, val_size=2, train_size=None, device=CPU, workers=2)


def epoch(data: Data, augment: Augment, seed: int = 0, skip: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = data.epoch(generator, 3, False)
    chance = data.crop_chance(len(order), generator)
    noise = StreamNoise.on(CPU).reseed(0, "augment")
    batches = data.train_batches(order, 3, drop_last=False, augment=augment, rng=noise, skip=skip, crop_chance=chance)
    return [x for x, _ in batches]


def test_a_box_is_cut_from_the_whole_image_and_resampled() -> None:
    image = picture(90, 60)
    # Three quarters of the area; the ratio of the sides is 1: (3/4) (16/9) ** 0.5.
    found = decode(file_of(image), 16, "x", chance=(0.5, 0.5, 0.25, 0.75), smallest=0.5)
    side = (0.75 * 90 * 60) ** 0.5
    high = min(side, 60)
    left, top = 0.25 * (90 - side), 0.75 * (60 - high)
    expected = image.resize((16, 16), Image.Resampling.BILINEAR, box=(left, top, left + side, top + high))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("chance", [(0.0, 0.0, 0.0, 0.0), (1 - 2**-24,) * 4, (1.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("size", [(500, 375), (7, 300), (1, 1)])
def test_a_box_lies_in_the_image_whatever_is_drawn(chance: tuple[float, ...], size: tuple[int, int]) -> None:
    assert decode(file_of(picture(*size)), 8, "x", chance=chance, smallest=0.08).shape == (3, 8, 8)


def test_reduced_decoding_changes_pixels_a_little_and_only_of_large_images() -> None:
    large, small = file_of(picture(256, 256), "jpeg"), file_of(picture(48, 48), "jpeg")
    whole, reduced = decode(large, 32, "x").astype(int), decode(large, 32, "x", draft=True).astype(int)
    assert 0 < np.abs(whole - reduced).max() < 40
    assert np.abs(whole - reduced).mean() < 3
    assert np.array_equal(decode(small, 32, "x"), decode(small, 32, "x", draft=True))
    # The box of a crop moves with the size of the image.
    chance = (0.3, 0.7, 0.9, 0.1)
    whole, reduced = (decode(large, 32, "x", chance=chance, smallest=0.5, draft=on).astype(int) for on in (False, True))
    assert np.abs(whole - reduced).mean() < 3


def test_reduced_decoding_is_seen_in_digest_and_results(folder: str) -> None:
    usual, reduced = data_of(folder), data_of(folder, draft=True)
    assert usual.digest != reduced.digest
    assert (usual.decode, reduced.decode) == ("JPEG", "JPEG, at a reduced size")


def test_crops_of_whole_images_depend_on_the_seed_and_not_on_where_an_epoch_resumes(folder: str) -> None:
    data = data_of(folder, crop_from="whole")
    first = epoch(data, CROP)
    assert all(torch.equal(x, again) for x, again in zip(first, epoch(data, CROP), strict=True))
    assert not torch.equal(first[0], epoch(data, CROP, seed=1)[0])
    resumed = epoch(data, replace(CROP, flip=False), skip=2)
    assert torch.equal(torch.cat(resumed), torch.cat(epoch(data, replace(CROP, flip=False))[2:]))
    # Validation images are central squares.
    assert torch.equal(data.evaluation("val")[0], data_of(folder).evaluation("val")[0])


def test_a_crop_is_cut_once_and_by_nothing_else(folder: str) -> None:
    data = data_of(folder, crop_from="whole")
    generator = torch.Generator().manual_seed(0)
    order = data.epoch(generator, 3, False)
    chance = data.crop_chance(len(order), generator)
    assert chance is not None
    source = image_folder(root=folder, size=16, crop_from="whole")
    assert not source.train.in_memory
    assert source.cut is not None
    rows = data._train().rows[order]
    expected = source.cut(rows, Crops(chance, 0.2)).float() / 255
    noise = StreamNoise.on(CPU).reseed(0, "augment")
    only_crop = Augment(resized_crop=0.2)
    batches = data.train_batches(order, 3, drop_last=False, augment=only_crop, rng=noise, crop_chance=chance)
    assert torch.equal(torch.cat([x for x, _ in batches]), expected)
    assert data_of(folder).crop_chance(5, generator) is None


def test_packed_files_are_cut_as_those_of_the_folder_and_packed_pixels_are_refused(folder: str, tmp_path: Path) -> None:
    pack(folder, tmp_path / "files", None)
    source = packed(root=str(tmp_path / "files"), size=16, crop_from="whole")
    data = prepare(source, val_size=2, train_size=None, device=CPU, workers=0)
    for one, other in zip(epoch(data, CROP), epoch(data_of(folder, crop_from="whole"), CROP), strict=True):
        assert torch.equal(one, other)
    pack(folder, tmp_path / "pixels", 16)
    for part, settings in (("all", {"crop_from": "whole"}), ("test", {"draft": True})):
        with pytest.raises(RobustCliError, match=r"data\.(crop_from: whole|draft: true): .* holds decoded squares"):
            packed(part, root=str(tmp_path / "pixels"), **settings)


class Reader:
    """Counts reads by request."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __call__(self, request: int) -> int:
        self.read.append(request)
        return 10 * request


@pytest.fixture
def ahead() -> Callable[[int], tuple[Reader, ReadAhead[int, int]]]:
    def make(workers: int) -> tuple[Reader, ReadAhead[int, int]]:
        reader = Reader()
        return reader, ReadAhead(reader, int.__eq__, workers)

    return make


@pytest.mark.parametrize("workers", [0, 1, 3, 9])
def test_images_prefetched_for_the_next_epoch_are_not_read_again(
    workers: int, ahead: Callable[[int], tuple[Reader, ReadAhead[int, int]]]
) -> None:
    reader, results = ahead(workers)
    assert list(results.results([1, 2, 3, 4], lambda: [5, 6, 7])) == [10, 20, 30, 40]
    assert list(results.results([5, 6, 7], lambda: [1, 2, 3, 4])) == [50, 60, 70]
    # Other images than were prefetched.
    assert list(results.results([8, 9])) == [80, 90]
    assert sorted(set(reader.read)) == list(range(1, 10)) if workers == 0 else set(reader.read) <= set(range(1, 10))
    assert [reader.read.count(number) for number in (5, 6, 7, 8, 9)] == [1] * 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_sequence_that_is_left_early_drops_what_follows(
    ahead: Callable[[int], tuple[Reader, ReadAhead[int, int]]],
) -> None:
    _, results = ahead(2)
    left = results.results([1, 2, 3], lambda: [4, 5])
    assert [next(left), next(left)] == [10, 20]
    left.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    assert list(results.results([4, 5])) == [40, 50]
