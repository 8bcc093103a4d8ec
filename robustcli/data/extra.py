"""Extra training images from a NumPy archive, such as generated ones."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.data.datasets import Split, TensorSplit
from robustcli.errors import RobustCliError, in_one_line
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import absolute

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True)
class Extra:
    """Extra images and their share of a batch.

    Args:
        split: images and labels in memory.
        share: share of extra images in each batch, rounded down to whole images.
    """

    split: TensorSplit
    share: float

    @property
    def digest(self) -> str:
        """SHA-256 over labels and images."""
        digest = hashlib.sha256(self.split.labels.numpy().tobytes())
        digest.update(np.ascontiguousarray(self.split.images.numpy()).data)
        return digest.hexdigest()

    @property
    def is_labeled(self) -> bool:
        """True if all extra images have a label."""
        return bool((self.split.labels >= 0).all())

    def per_batch(self, batch_size: int) -> int:
        # 0.29 * 100 is a little less than 29.
        return int(self.share * batch_size + 1e-9)


@dataclass(frozen=True)
class Joined:
    """Concatenation of two splits."""

    first: Split
    second: Split

    @property
    def labels(self) -> Tensor:
        return torch.cat([self.first.labels, self.second.labels])

    @property
    def in_memory(self) -> bool:
        return self.first.in_memory and self.second.in_memory

    def read(self, index: Tensor) -> Tensor:
        is_second = index >= len(self.first.labels)
        first = self.first.read(index[~is_second])
        second = self.second.read(index[is_second] - len(self.first.labels))
        if first.dtype != second.dtype:
            # Bytes and floats become floats.
            first, second = (part.float() / 255 if part.dtype == torch.uint8 else part for part in (first, second))
        images = torch.empty((len(index), *first.shape[1:]), dtype=first.dtype)
        images[~is_second], images[is_second] = first, second
        return images


def read_extra(path: str, labels: str | None, shape: ImageShape) -> TensorSplit:
    """Read the images of an archive and their labels.

    Args:
        path: .npz file with "image", uint8 (n, height, width, channels), and "label", integers (n,), the usual form of
            generated data sets; the label -1 means none.
        labels: .npz file with "label", or .npy file, with labels that replace those of the archive.
        shape: shape of the images of the data set.

    Raises:
        RobustCliError: a file is missing or broken, or does not fit the data set.
    """
    wanted = ("image",) if labels is not None else ("image", "label")
    arrays = _arrays("data.extra.path", path, wanted)
    images = _images(f"data.extra.path: {path}: image", arrays["image"], shape)
    if labels is None:
        where, array = f"data.extra.path: {path}: label", arrays["label"]
    else:
        where, array = f"data.extra.labels: {labels}", _arrays("data.extra.labels", labels, ("label",))["label"]
    return TensorSplit(images, _labels(where, array, len(images), shape.classes))


def _arrays(key: str, path: str, wanted: tuple[str, ...]) -> Mapping[str, Array]:
    file = absolute(path)
    if not file.is_file():
        raise RobustCliError(f"{key}: there is no file {file}; expected a NumPy file (.npz or .npy)")
    try:
        with file.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                return dict.fromkeys(wanted, found)
            missing = [name for name in wanted if name not in found.files]
            if not missing:
                return {name: found[name] for name in wanted}
            held = ", ".join(found.files) or "nothing"
    except UNREADABLE as error:
        raise RobustCliError(
            f"{key}: {file} cannot be read ({in_one_line(error)}); expected a NumPy file (.npz or .npy)"
        ) from error
    raise RobustCliError(f"{key}: {file} does not have {', '.join(missing)} (it has {held})")


def _images(where: str, array: Array, shape: ImageShape) -> Tensor:
    if array.dtype != np.uint8:
        raise RobustCliError(f"{where} is {array.dtype}; expected uint8 in 0..255")
    if array.ndim == 3:
        array = array[..., None]
    expected = (shape.height, shape.width, shape.channels)
    if array.ndim != 4 or array.shape[1:] != expected or not len(array):
        raise RobustCliError(f"{where} has shape {array.shape}; expected (n, {', '.join(map(str, expected))})")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _labels(where: str, array: Array, count: int, classes: int) -> Tensor:
    if array.dtype.kind not in "iu":
        raise RobustCliError(f"{where} is {array.dtype}; expected integers")
    if array.shape != (count,):
        raise RobustCliError(f"{where} has shape {array.shape}; expected ({count},), one for each image")
    if array.min() < -1 or array.max() >= classes:
        worst = array.min() if array.min() < -1 else array.max()
        raise RobustCliError(f"{where} has the label {worst}; expected 0 to {classes - 1}, or -1 for no label")
    return torch.from_numpy(array.astype(np.int64))
