"""Images written by `robust pack`: a few memory-mapped files with an index.

A packed folder contains, for train and test:
    train.npz          index: label, name, length of each original file, and its position
    train-00000.bin    shards: the original files, or pixels of a fixed size, one image after the other
    pack.json          contents, with a SHA-256 of every file; written last, so its presence means that packing finished
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from robustcli.data.datasets import DATASETS, Part, Source
from robustcli.data.datasets.encoded import CropFrom, EncodedSplit, fingerprint, source_of, test_source_of
from robustcli.errors import RobustCliError, in_one_line
from robustcli.registry.types import Count, Size
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import absolute, read_json

MANIFEST = "pack.json"
PartName = Literal["train", "test"]


class PackedFile(BaseModel):
    """A file of a packed folder, with its size in bytes and SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    bytes: int
    sha256: str


class PackedPart(BaseModel):
    """Train or test part: number of images, index and shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    images: int
    index: PackedFile
    shards: tuple[PackedFile, ...]


class Manifest(BaseModel):
    """Contents of pack.json.

    Args:
        kind: "files" as they were, or "pixels" of a fixed size.
        size: height and width of pixels; None for files.
        decode: decoding of the files if it changes pixels, such as "JPEG".
        mean, std, digest: of pixels, as `image_folder` computes them when it holds the images in memory; None for files
            and without a train part.
        parts: parts by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    kind: Literal["files", "pixels"]
    size: int | None
    classes: tuple[str, ...]
    decode: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    digest: str | None = None
    parts: dict[PartName, PackedPart]


@DATASETS.register("packed", reads_test=True, own_images=True, given_by="/pack.json", smoke={"root": "data/packed"})
def packed(
    part: Part = "all",
    /,
    *,
    root: str,
    size: Count | None = None,
    memory_mib: Size = 2048,
    crop_from: Literal["square", "whole"] = "square",
    draft: bool = False,
) -> Source:
    """A folder of images that `robust pack` converted into a few memory-mapped files.

    Images, order, labels and classes are those of `image_folder`. Packed pixels of a fixed size need no decoding; mean,
    std and data digest are those of `image_folder` with images in memory. Packed files are decoded as by
    `image_folder`, with the same mean, std and digest. The digest of pixels is read, not computed; `robust pack OUT
    --check` verifies it.

    When to use: for folders of many files, and for images of ImageNet's size.

    First setting: robust pack FOLDER OUT --size 32, then data.name=packed data.root=OUT.

    Args:
        root: the folder that `robust pack` wrote; "~" is the home folder.
        size: height and width of the images, in pixels. Default: the size of packed pixels; required for packed files.
        memory_mib: if all decoded files fit into this many MiB, they are kept in memory; otherwise each is decoded when
            needed. Without effect on packed pixels.
        crop_from: source of data.augment.resized_crop, as in `image_folder`; packed pixels are squares.
        draft: decode packed JPEG at a reduced size if that suffices, as in `image_folder`.

    Reference: the format of this project, described in robustcli/data/datasets/packed.py.
    """
    folder, manifest, side = _opened(root, size, crop_from, draft=draft)
    classes = list(manifest.classes)
    if part == "test":
        test = _split(folder, manifest, "test", side)
        if isinstance(test, EncodedSplit):
            return test_source_of(test, classes, draft=draft)
        none = PackedPixels(test.files.chosen(()), test.labels[:0], test.size)
        return Source(none, test, classes, (), (), manifest.decode, is_whole=False)
    if "train" not in manifest.parts:
        raise RobustCliError(
            f"data.root: {folder} has no train part, so it is for evaluation only; pack a folder with train/<class>/"
        )
    train, test = (_split(folder, manifest, name, side) for name in ("train", "test"))
    if isinstance(train, EncodedSplit) and isinstance(test, EncodedSplit):
        return source_of(train, test, classes, memory_mib, crop_from, draft=draft)
    assert manifest.mean is not None
    assert manifest.std is not None
    return Source(train, test, classes, manifest.mean, manifest.std, manifest.decode, digest=manifest.digest or "")


@dataclass(frozen=True)
class Shards:
    """Shards of one part, mapped into memory when they are first read.

    Args:
        paths: paths of the shards.
        index: arrays of the index by name.
    """

    paths: Sequence[Path]
    index: dict[str, np.ndarray[Any, Any]]

    @cached_property
    def maps(self) -> list[np.memmap[Any, np.dtype[np.uint8]]]:
        return [np.memmap(path, dtype=np.uint8, mode="r") for path in self.paths]

    @cached_property
    def names(self) -> list[str]:
        blob = self.index["names"].tobytes().decode("utf-8", "surrogateescape")
        return blob.split("\0")[:-1]


@dataclass(frozen=True)
class PackedFiles:
    """Image files in shards.

    Args:
        root: the packed folder, for messages.
        part: name of the part.
        shards: shards of the part.
        numbers: chosen images, in order.
    """

    root: Path
    part: PartName
    shards: Shards
    numbers: Sequence[int]

    @property
    def names(self) -> Sequence[str]:
        return [self.shards.names[number] for number in self.numbers]

    def read(self, number: int) -> bytes:
        number = self.numbers[number]
        index = self.shards.index
        start, length = int(index["start"][number]), int(index["length"][number])
        return self.shards.maps[int(index["shard"][number])][start : start + length].tobytes()

    def length(self, number: int) -> int:
        return int(self.shards.index["length"][self.numbers[number]])

    def where(self, number: int) -> str:
        return f"{self.root}: {self.part}/{self.shards.names[self.numbers[number]]}"

    def chosen(self, numbers: Sequence[int]) -> "PackedFiles":
        return replace(self, numbers=[self.numbers[number] for number in numbers])


@dataclass(frozen=True)
class PackedPixels:
    """Pixels of a fixed size in shards; reading them only copies.

    Args:
        files: the images, for their names and lengths.
        labels: (n,) int64.
        size: height and width.
    """

    files: PackedFiles
    labels: Tensor
    size: int
    in_memory: ClassVar[bool] = True

    def read(self, index: Tensor) -> Tensor:
        images = torch.empty((len(index), 3, self.size, self.size), dtype=torch.uint8)
        rows, numbers = images.numpy().reshape(len(index), -1), index.numpy()
        shard, start = (self.files.shards.index[name][numbers] for name in ("shard", "start"))
        length = rows.shape[1]
        for each in np.unique(shard):
            is_here = shard == each
            pixels, wanted = self.files.shards.maps[each].reshape(-1, length), start[is_here] // length
            if is_here.all():
                # Positions are in range, and with "raise" NumPy would copy twice.
                np.take(pixels, wanted, axis=0, out=rows, mode="clip")
            else:
                rows[is_here] = pixels[wanted]
        return images

    def fingerprint(self) -> bytes:
        """Return the same digest of names and sizes of the original files as `image_folder`."""
        return fingerprint(self.size, self.files)


def _opened(root: str, size: int | None, crop_from: CropFrom, *, draft: bool) -> tuple[Path, Manifest, int]:
    """Folder, manifest and size of the images."""
    folder = absolute(root)
    manifest = read_manifest(folder)
    for key, is_set in (("crop_from: whole", crop_from == "whole"), ("draft: true", draft)):
        if is_set and manifest.kind == "pixels":
            raise RobustCliError(
                f"data.{key}: {folder} holds decoded squares; leave it out, or pack the folder without --size"
            )
    if manifest.size is None and size is None:
        raise RobustCliError(
            f"data.size: {folder} holds image files of any size; set the size that images get, such as data.size=224"
        )
    if manifest.size is not None and size not in (None, manifest.size):
        raise RobustCliError(
            f"data.size: {size}; {folder} holds pixels of {manifest.size} x {manifest.size}; leave data.size out, or "
            f"pack the folder with --size {size}"
        )
    side = size if manifest.size is None else manifest.size
    assert side is not None
    return folder, manifest, side


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a packed folder; sizes of files are checked, contents are not.

    Raises:
        RobustCliError: it is not a packed folder, is incomplete, or files are missing or truncated.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RobustCliError(
            f"data.root: {folder} has no {MANIFEST}; expected a folder that `robust pack` finished writing; "
            "data.name=image_folder reads a folder of image files"
        )
    try:
        manifest = Manifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RobustCliError(f"{path}: {where}: {first['msg'].lower()}; pack the folder again") from error
    if "test" not in manifest.parts or (manifest.kind == "pixels") != (manifest.size is not None):
        raise RobustCliError(f"{path}: parts or size are missing; pack the folder again")
    for part in manifest.parts.values():
        for stated in (part.index, *part.shards):
            found = (folder / stated.file).stat().st_size if (folder / stated.file).is_file() else None
            if found != stated.bytes:
                said = "is missing" if found is None else f"has {found} bytes"
                raise RobustCliError(
                    f"{folder / stated.file}: {said}; {MANIFEST} states {stated.bytes} bytes; pack the folder again"
                )
    return manifest


def _split(folder: Path, manifest: Manifest, name: PartName, size: int) -> "EncodedSplit | PackedPixels":
    part = manifest.parts[name]
    path = folder / part.index.file
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            index = {key: stored[key] for key in ("labels", "names", "shard", "start", "length")}
    except UNREADABLE as error:
        raise RobustCliError(f"{path}: cannot be read ({in_one_line(error)}); pack the folder again") from error
    shards = Shards([folder / shard.file for shard in part.shards], index)
    files = PackedFiles(folder, name, shards, range(part.images))
    labels = torch.from_numpy(index["labels"])
    if manifest.kind == "files":
        return EncodedSplit(files, labels, size)
    return PackedPixels(files, labels, size)
