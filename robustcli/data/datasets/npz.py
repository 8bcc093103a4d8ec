"""Images and labels in one NumPy archive."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.data.datasets import DATASETS, Part, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.errors import RobustCliError, in_one_line, shortened
from robustcli.store.arrays import UNREADABLE
from robustcli.store.file_kinds import other_kind
from robustcli.store.files import absolute

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")
# Largest label; larger numbers cannot be classes, and their names would fill the memory.
_MOST_CLASSES = 1_000_000


@DATASETS.register("npz", reads_test=True, own_images=True, given_by=".npz", smoke={"path": "data/images.npz"})
def npz(part: Part = "all", /, *, path: str) -> Source:
    """Your own arrays: x_train, y_train, x_test and y_test in a file that numpy.savez wrote.

    Images are uint8 in 0..255 or floats in [0, 1], (n, height, width, channels) or, for one channel, (n, height,
    width). Labels are integers from 0, (n,) or (n, 1). An array "classes" gives the names and number of classes;
    without it every label up to the largest must occur in y_train. Mean and std are those of the train images. An
    evaluation reads only x_test, y_test and "classes"; without "classes" it takes the number of classes from the
    network.

    Args:
        path: path of the file; "~" is the home folder.

    Reference: the .npz format of NumPy, numpy.org/doc/stable/reference/generated/numpy.savez.html.
    """
    file = absolute(path)
    arrays = _arrays(file, (*_TEST, *_TRAIN) if part == "all" and _has_train(file) else _TEST)
    if "x_train" not in arrays:
        return _test_alone(file, arrays)
    x_test, y_test = _images(file, "x_test", arrays), _labels(file, "y_test", arrays)
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


def _test_alone(file: Path, arrays: dict[str, Array]) -> Source:
    x, y = _images(file, "x_test", arrays), _labels(file, "y_test", arrays)
    classes = _classes(file, arrays, int(y.max()) + 1)
    _check_range(file, "y_test", y, len(classes))
    return Source(
        TensorSplit(x[:0], y[:0]),
        TensorSplit(x, y),
        classes,
        mean=(),
        std=(),
        classes_are_known="classes" in arrays,
        is_whole=False,
    )


def _has_train(file: Path) -> bool:
    """Return whether a file has train images or labels; False if it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            return not {f"{key}.npy" for key in _TRAIN}.isdisjoint(archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _arrays(file: Path, needed: Sequence[str]) -> dict[str, Array]:
    """Return the required arrays by name, and "classes" if it exists."""
    if not file.is_file():
        raise RobustCliError(f"data.path: there is no file {file}; expected one that numpy.savez wrote")
    kind = other_kind(file)
    if kind is not None:
        raise RobustCliError(f"data.path: {file}: the file is {kind}")
    key = ""
    arrays: dict[str, Array] = {}
    try:
        with file.open("rb") as stream:
            # Pickled objects could run code, so they are refused.
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            keys = archive.files
            for key in (*needed, "classes"):
                if key in keys:
                    arrays[key] = archive[key]
    except UNREADABLE as error:
        where = f"{file}: {key}" if key else f"{file}"
        # NumPy would suggest loading it with pickle, which can run code from the file.
        said = "it holds Python objects or an odd header" if "allow_pickle" in str(error) else in_one_line(error)
        raise RobustCliError(
            f"data.path: {where} cannot be read ({said}); expected a file that numpy.savez wrote"
        ) from error
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise RobustCliError(
            f"data.path: {file} does not have {', '.join(missing)} (it has {', '.join(keys) or 'nothing'}); expected "
            "x_test and y_test, and x_train and y_train for training"
        )
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise RobustCliError(f"data.path: {file}: {key} is not an array; expected a file that numpy.savez wrote")
    return arrays


def _images(file: Path, key: str, arrays: dict[str, Array]) -> Tensor:
    array = arrays[key]
    where = f"data.path: {file}: {key}"
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
    if array.dtype.kind == "f":
        array = _unit_floats(where, key, array)
    elif array.dtype != np.uint8:
        raise RobustCliError(f"{where} is {array.dtype}; expected uint8 in 0..255 or floats in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _unit_floats(where: str, key: str, array: Array) -> Array:
    """Return floats as float32; raise if they are not pixels in [0, 1]."""
    low, high = float(array.min()), float(array.max())
    # Written so that NaN, for which every comparison is false, is refused.
    if not (low >= 0 and high <= 1):
        hint = f": divide by 255, {key} / 255" if 1 < high <= 255 and low >= 0 else ""
        raise RobustCliError(f"{where} is {array.dtype} from {low:.4g} to {high:.4g}; expected pixels in [0, 1]{hint}")
    return array.astype(np.float32)


def _labels(file: Path, key: str, arrays: dict[str, Array]) -> Tensor:
    array, count = arrays[key], len(arrays[key.replace("y", "x")])
    where = f"data.path: {file}: {key}"
    if array.dtype.kind not in "iu":
        raise RobustCliError(f"{where} is {array.dtype}; expected whole numbers: use {key}.astype('int64')")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = f": use {key}.argmax(1) if each row marks one class" if array.ndim == 2 and array.shape[1] > 1 else ""
        raise RobustCliError(f"{where} has shape {array.shape}; expected (n,){hint}")
    if len(array) != count:
        raise RobustCliError(f"{where} has {len(array)} labels for {count} images; expected one for each")
    if int(array.min()) < 0 or int(array.max()) > _MOST_CLASSES:
        wrong = array.min() if int(array.min()) < 0 else array.max()
        raise RobustCliError(f"{where} has the label {wrong}; expected whole numbers from 0 on")
    return torch.from_numpy(array.astype(np.int64))


def _classes(file: Path, arrays: dict[str, Array], count: int) -> list[str]:
    """Names from the file, or the numbers themselves."""
    if "classes" not in arrays:
        return [str(label) for label in range(count)]
    names = arrays["classes"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise RobustCliError(
            f"data.path: {file}: classes has shape {names.shape} and type {names.dtype}; expected one row of texts"
        )
    listed = [str(name) for name in names]
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise RobustCliError(f"data.path: {file}: classes has '{shortened(twice)}' twice; expected different names")
    return listed


def _check_range(file: Path, key: str, labels: Tensor, classes: int) -> None:
    if int(labels.max()) >= classes:
        raise RobustCliError(
            f"data.path: {file}: {key} has the label {int(labels.max())}; "
            f"expected 0 to {classes - 1}, since there are {classes} classes"
        )


def _size(images: Tensor) -> str:
    _, channels, height, width = images.shape
    return f"{height} x {width} x {channels}"
