"""Images and labels in one NumPy archive."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.errors import RobustCliError

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_EVERY_KEY = ("x_train", "y_train", "x_test", "y_test")
_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@DATASETS.register("npz", own_images=True, smoke={"path": "data/images.npz"})
def npz(*, path: str) -> Source:
    """Your own arrays: x_train, y_train, x_test and y_test in a file that numpy.savez wrote.

    Images are uint8, (n, height, width, channels) or, for one channel, (n, height, width). Labels are whole
    numbers from 0 on; an array of names under "classes" may say what they mean and how many there are,
    and without it every label up to the largest must occur in y_train. Mean and std are those of the train
    images. A file with x_test and y_test alone serves for evaluation: mean is 0, std is 1, and without
    "classes" the largest label tells their number.

    Args:
        path: of the file; "~" is the home folder.

    Reference: the .npz format of NumPy, numpy.org/doc/stable/reference/generated/numpy.savez.html.
    """
    file = Path(path).expanduser().resolve()
    arrays = _arrays(file)
    x_test, y_test = _images(file, "x_test", arrays), _labels(file, "y_test", arrays)
    if "x_train" not in arrays:
        classes = _classes(file, arrays, int(y_test.max()) + 1)
        _check_range(file, "y_test", y_test, len(classes))
        channels = x_test.shape[1]
        nothing = TensorSplit(x_test[:0], y_test[:0])
        return Source(nothing, TensorSplit(x_test, y_test), classes, mean=(0.0,) * channels, std=(1.0,) * channels)
    x_train, y_train = _images(file, "x_train", arrays), _labels(file, "y_train", arrays)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise RobustCliError(
            f"data.path: {file}: x_train has images of {_size(x_train)} and x_test of {_size(x_test)}; "
            "expected one size (height x width x channels)"
        )
    present = set(y_train.tolist())
    absent = next((label for label in range(len(present)) if label not in present), None)
    if "classes" not in arrays and absent is not None:
        raise RobustCliError(
            f"data.path: {file}: y_train has labels from {min(present)} to {max(present)} and no {absent}; "
            "expected every number from 0 on, or an array 'classes' with a name for each"
        )
    classes = _classes(file, arrays, len(present))
    for key, labels in (("y_train", y_train), ("y_test", y_test)):
        _check_range(file, key, labels, len(classes))
    mean, std = channel_statistics(x_train)
    return Source(TensorSplit(x_train, y_train), TensorSplit(x_test, y_test), classes, mean, std)


def _arrays(file: Path) -> dict[str, Array]:
    if not file.is_file():
        raise RobustCliError(f"data.path: there is no file {file}; expected one that numpy.savez wrote")
    key = ""
    arrays: dict[str, Array] = {}
    try:
        with file.open("rb") as stream:
            # Pickled objects could run code, so they are refused.
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            keys = archive.files
            for key in (*_EVERY_KEY, "classes"):
                if key in keys:
                    arrays[key] = archive[key]
    except _BROKEN as error:
        where = f"{file}: {key}" if key else f"{file}"
        raise RobustCliError(
            f"data.path: {where} cannot be read ({error}); expected a file that numpy.savez wrote"
        ) from error
    has_train = "x_train" in arrays or "y_train" in arrays
    missing = [key for key in (_EVERY_KEY if has_train else _EVERY_KEY[2:]) if key not in arrays]
    if missing:
        raise RobustCliError(
            f"data.path: {file} lacks {', '.join(missing)} (it has {', '.join(keys) or 'nothing'}); expected "
            f"{', '.join(_EVERY_KEY)}, or x_test and y_test alone to evaluate only"
        )
    return arrays


def _images(file: Path, key: str, arrays: dict[str, Array]) -> Tensor:
    array = arrays[key]
    where = f"data.path: {file}: {key}"
    if array.dtype != np.uint8:
        hint = (
            f"; convert floats in [0, 1] with ({key} * 255).round().astype('uint8')" if array.dtype.kind == "f" else ""
        )
        raise RobustCliError(f"{where} is {array.dtype}; expected uint8 in 0..255{hint}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in array.shape:
        raise RobustCliError(
            f"{where} has shape {array.shape}; expected (n, height, width, channels) or (n, height, width)"
        )
    if array.shape[1] in (1, 3) and array.shape[3] > 4:
        raise RobustCliError(
            f"{where} has shape {array.shape}, which looks like channels first; "
            f"expected (n, height, width, channels): use {key}.transpose(0, 2, 3, 1)"
        )
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _labels(file: Path, key: str, arrays: dict[str, Array]) -> Tensor:
    array, count = arrays[key], len(arrays[key.replace("y", "x")])
    where = f"data.path: {file}: {key}"
    if array.dtype.kind not in "iu":
        raise RobustCliError(f"{where} is {array.dtype}; expected whole numbers: use {key}.astype('int64')")
    if array.ndim != 1:
        hint = f": use {key}.argmax(1) if each row marks one class" if array.ndim == 2 and array.shape[1] > 1 else ""
        raise RobustCliError(f"{where} has shape {array.shape}; expected (n,){hint}")
    if len(array) != count:
        raise RobustCliError(f"{where} has {len(array)} labels for {count} images; expected one for each")
    if array.min() < 0:
        raise RobustCliError(f"{where} has the label {array.min()}; expected whole numbers from 0 on")
    return torch.from_numpy(array.astype(np.int64))


def _classes(file: Path, arrays: dict[str, Array], count: int) -> list[str]:
    """Names from the file, or else the numbers themselves."""
    if "classes" not in arrays:
        return [str(label) for label in range(count)]
    names = arrays["classes"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise RobustCliError(
            f"data.path: {file}: classes has shape {names.shape} and type {names.dtype}; expected one row of texts"
        )
    return [str(name) for name in names]


def _check_range(file: Path, key: str, labels: Tensor, classes: int) -> None:
    if int(labels.max()) >= classes:
        raise RobustCliError(
            f"data.path: {file}: {key} has the label {int(labels.max())}; "
            f"expected 0 to {classes - 1}, since there are {classes} classes"
        )


def _size(images: Tensor) -> str:
    _, channels, height, width = images.shape
    return f"{height} x {width} x {channels}"
