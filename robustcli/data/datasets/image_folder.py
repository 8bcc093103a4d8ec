"""A folder of images, one subfolder for each class."""

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustcli.data.datasets import DATASETS, Source, TensorSplit, reads_test
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Size

_JPEG = (".jpg", ".jpeg")
_SUFFIXES = (*_JPEG, ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")
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
    in memory, those of the first 1,000 in a fixed random order. An evaluation reads only the test images that it needs.

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
    if classes.keys() != test_classes.keys():
        raise RobustCliError(
            f"data.root: {train_folder} and {test_folder} have different classes: "
            f"only in {train_folder.name}: {_listed(set(classes) - set(test_classes))}; "
            f"only in {test_folder.name}: {_listed(set(test_classes) - set(classes))}; expected the same in both"
        )
    names = list(classes)
    train = _files(train_folder, classes, names, size)
    test = _files(test_folder, test_classes, names, size)
    test = test.reordered(fixed_order(len(test.paths)))
    decode = _decoder(*train.paths, *test.paths)
    if train.decoded_bytes + test.decoded_bytes <= memory_mib * 2**20:
        held = train.decoded()
        mean, std = channel_statistics(held.images)
        return Source(held, test.decoded(), names, mean, std, decode)
    sample = train.reordered(fixed_order(len(train.paths))[:_STATISTICS_SIZE])
    mean, std = channel_statistics(sample.decoded().images)
    return Source(train, test, names, mean, std, decode)


@reads_test("image_folder")
def image_folder_test(*, root: str, size: int = 32, memory_mib: int = 2048) -> Source:
    """The test part of a folder, each image decoded when it is needed.

    Of the train part, which may be absent, only the names of its classes count: a class may lack test images.
    """
    folder = Path(root).expanduser().resolve()
    test_folder = _part(folder, "test", "val")
    test_classes = _classes(test_folder)
    train_classes = _classes(folder / "train", may_be_empty=True) if (folder / "train").is_dir() else {}
    names = sorted({*test_classes, *train_classes})
    test = _files(test_folder, test_classes, names, size, may_lack_classes=True)
    test = test.reordered(fixed_order(len(test.paths)))
    return Source(test.reordered(torch.arange(0)), test, names, (), (), _decoder(*test.paths), is_whole=False)


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
        self._fill_in_threads(images.numpy(), [self.paths[number] for number in index.tolist()])
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
        """All images in memory."""
        return TensorSplit(self.read(torch.arange(len(self.paths))), self.labels)

    def _fill_in_threads(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], paths: Sequence[str]) -> None:
        """Decode by as many threads as there are processors."""
        if len(paths) <= _CHUNK:
            self._fill(images, paths)
            return
        parts = [slice(start, start + _CHUNK) for start in range(0, len(paths), _CHUNK)]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [pool.submit(self._fill, images[part], paths[part]) for part in parts]
            try:
                for job in jobs:
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _fill(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], paths: Sequence[str]) -> None:
        for image, path in zip(images, paths, strict=True):
            image[:] = _decode(path, self.size).transpose(2, 0, 1)


def _decode(path: str, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        # The whole file at once: Pillow's many small reads would each let go of the interpreter's lock.
        with Image.open(BytesIO(Path(path).read_bytes())) as file:
            if file.mode.startswith(("I", "F")) or _has_16_bits(file):
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


def _has_16_bits(file: Image.Image) -> bool:
    """Whether an image in a mode of 8 bits has 16 in the file, as RGB of PNG, TIFF and PPM may."""
    for tile in getattr(file, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(part, str) and ";16" in part for part in arguments):
            return True
        if tile[0].startswith("ppm") and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return True
    return False


def _part(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise RobustCliError(
        f"data.root: {folder} has no folder {' or '.join(names)}; "
        "expected train/<class>/<image> and test/<class>/<image> in it"
    )


def _classes(folder: Path, *, may_be_empty: bool = False) -> dict[str, Path]:
    """Folders of the classes by their names, in order; names that only look different in Unicode are one."""
    found = {
        unicodedata.normalize("NFC", path.name): path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    if not found and not may_be_empty:
        raise RobustCliError(f"data.root: {folder} has no subfolders; expected one for each class")
    return {name: found[name] for name in sorted(found)}


def _files(
    folder: Path, classes: Mapping[str, Path], names: Sequence[str], size: int, *, may_lack_classes: bool = False
) -> FileSplit:
    """Images of a part, class by class.

    Args:
        names: of all classes, in the order of the labels.
        may_lack_classes: whether a class may have no images, or no folder.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if name not in classes:
            continue
        found = sorted(entry.path for entry in os.scandir(classes[name]) if not _is_litter(entry.name))
        for path in found:
            if not path.lower().endswith(_SUFFIXES):
                raise RobustCliError(
                    f"{path}: is not an image that is read here; expected files ending in {', '.join(_SUFFIXES)}, "
                    "directly in the folder of their class"
                )
        if not found and not may_lack_classes:
            raise RobustCliError(f"{classes[name]}: has no images; put some there or delete this class everywhere")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise RobustCliError(f"data.root: {folder} has no images; expected some in the folders of its classes")
    return FileSplit(folder, paths, torch.tensor(labels, dtype=torch.int64), size)


def _is_litter(name: str) -> bool:
    """Whether a file is one that file managers leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def _decoder(*paths: str) -> str:
    return "JPEG" if any(path.lower().endswith(_JPEG) for path in paths) else ""


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
