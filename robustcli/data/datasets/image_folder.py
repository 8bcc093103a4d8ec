"""A folder of images, one subfolder for each class."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Size

_JPEG = (".jpg", ".jpeg")
_SUFFIXES = (*_JPEG, ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_STATISTICS_SIZE = 1000
# Files that one thread decodes before it asks for more.
_CHUNK = 32


@DATASETS.register("image_folder", own_images=True, smoke={"root": "data/images"})
def image_folder(*, root: str, size: Count = 32, memory_mib: Size = 2048) -> Source:
    """Your own images: root/train/<class>/<image> and root/test/<class>/<image>, always read as RGB.

    "val" stands for "test" where there is no "test". Classes are numbered in the order of their names. An
    image of another size is reduced to its central square, which is resampled (bilinear, smoothed when it
    shrinks). Since folders are sorted by class, test images come in one fixed random order, so that the
    first n of them are a fair sample. Mean and std are those of the train images; when images are not held
    in memory, those of the first 1,000 in a fixed random order.

    Args:
        root: the folder; "~" is the home folder.
        size: height and width that images get, in pixels.
        memory_mib: up to this much, in MiB, all images are decoded once into memory; beyond it each is read
            whenever it is needed.

    Reference: the layout of torchvision's ImageFolder, pytorch.org/vision.
    """
    folder = Path(root).expanduser().resolve()
    train_folder = _part(folder, "train")
    test_folder = _part(folder, "test", "val")
    classes, test_classes = _classes(train_folder), _classes(test_folder)
    if classes != test_classes:
        raise RobustCliError(
            f"data.root: {train_folder} and {test_folder} have different classes: "
            f"only in {train_folder.name}: {_listed(set(classes) - set(test_classes))}; "
            f"only in {test_folder.name}: {_listed(set(test_classes) - set(classes))}; expected the same in both"
        )
    train = _files(train_folder, classes, size)
    test = _files(test_folder, classes, size)
    test = test.reordered(fixed_order(len(test.paths)))
    decode = "JPEG" if any(path.lower().endswith(_JPEG) for path in (*train.paths, *test.paths)) else ""
    if train.decoded_bytes + test.decoded_bytes <= memory_mib * 2**20:
        held = train.decoded()
        mean, std = channel_statistics(held.images)
        return Source(held, test.decoded(), classes, mean, std, decode)
    sample = train.reordered(fixed_order(len(train.paths))[:_STATISTICS_SIZE])
    mean, std = channel_statistics(sample.decoded().images)
    return Source(train, test, classes, mean, std, decode)


@dataclass(frozen=True)
class FileSplit:
    """A split whose images are decoded from files whenever they are read.

    Args:
        folder: what the names in messages and in the fingerprint are relative to.
        paths: of the images.
        labels: (n,) int64.
        size: height and width of the decoded images.
    """

    folder: Path
    paths: Sequence[str]
    labels: Tensor
    size: int
    in_memory: bool = False

    @property
    def decoded_bytes(self) -> int:
        return len(self.paths) * 3 * self.size**2

    def read(self, index: Tensor) -> Tensor:
        images = torch.empty((len(index), 3, self.size, self.size), dtype=torch.uint8)
        self._fill(images.numpy(), [self.paths[number] for number in index.tolist()])
        return images

    def fingerprint(self) -> bytes:
        """Changes when a file is renamed, moved or gets another length; the pixels are not looked at."""
        lines = (f"{os.path.relpath(path, self.folder)}\0{os.path.getsize(path)}\n" for path in self.paths)
        digest = hashlib.sha256(str(self.size).encode())
        for line in lines:
            digest.update(os.fsencode(line))
        return digest.digest()

    def reordered(self, order: Tensor) -> "FileSplit":
        """The same images, or some of them, in another order."""
        return FileSplit(self.folder, [self.paths[n] for n in order.tolist()], self.labels[order], self.size)

    def decoded(self) -> TensorSplit:
        """All images in memory, decoded by as many threads as there are processors."""
        images = torch.empty((len(self.paths), 3, self.size, self.size), dtype=torch.uint8)
        array = images.numpy()
        starts = range(0, len(self.paths), _CHUNK)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [
                pool.submit(self._fill, array[start : start + _CHUNK], self.paths[start : start + _CHUNK])
                for start in starts
            ]
            try:
                for job in jobs:
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return TensorSplit(images, self.labels)

    def _fill(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], paths: Sequence[str]) -> None:
        for image, path in zip(images, paths, strict=True):
            image[:] = _decode(path, self.size).transpose(2, 0, 1)


def _decode(path: str, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        # The whole file at once: Pillow's many small reads would each let go of the interpreter's lock.
        with Image.open(BytesIO(Path(path).read_bytes())) as file:
            if file.mode.startswith(("I", "F")):
                raise RobustCliError(
                    f"{path}: has more than 8 bits per channel (mode {file.mode}), which converting would cut off; "
                    "expected 8-bit images"
                )
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RobustCliError(f"{path}: cannot be decoded as an image ({error}); replace or delete it") from error
    if image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(image)


def _part(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise RobustCliError(
        f"data.root: {folder} has no folder {' or '.join(names)}; "
        "expected train/<class>/<image> and test/<class>/<image> in it"
    )


def _classes(folder: Path) -> list[str]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise RobustCliError(f"data.root: {folder} has no subfolders; expected one for each class")
    return classes


def _files(folder: Path, classes: Sequence[str], size: int) -> FileSplit:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(entry.path for entry in os.scandir(folder / name) if not entry.name.startswith("."))
        for path in found:
            if not path.lower().endswith(_SUFFIXES):
                raise RobustCliError(
                    f"{path}: is not an image that is read here; expected files ending in {', '.join(_SUFFIXES)}, "
                    "directly in the folder of their class"
                )
        if not found:
            raise RobustCliError(f"{folder / name}: has no images; put some there or delete this class everywhere")
        paths += found
        labels += [label] * len(found)
    return FileSplit(folder, paths, torch.tensor(labels, dtype=torch.int64), size)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
