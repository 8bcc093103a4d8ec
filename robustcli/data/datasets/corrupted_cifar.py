"""CIFAR-10-C and CIFAR-100-C in their published files: test images under corruptions of five severities."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.cifar import statistics
from robustcli.data.datasets.corruptions import check_corruptions
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import absolute

_SIDE = 32
_SEVERITIES = 5


@DATASETS.register("cifar10_c", fixed={"count": 10}, image=(3, 32, 32), classes=10)
@DATASETS.register("cifar100_c", fixed={"count": 100}, image=(3, 32, 32), classes=100)
def cifar_c(
    *, count: int, root: str = "data", kinds: tuple[str, ...] = (), severities: tuple[Count, ...] = ()
) -> Source:
    """CIFAR-{count}-C: the test images of CIFAR-{count} under corruptions, for evaluation only.

    Every combination of a kind and a severity holds all 10,000 test images. With one kind and one severity, images keep
    the order of CIFAR-{count}; with several, all images come in one fixed random order, so that the first n of them are
    a fair sample and their clean accuracy estimates the mean corruption accuracy.

    Args:
        count: number of classes.
        root: folder that contains CIFAR-{count}-C/ as published: one file KIND.npy for each kind, and labels.npy.
        kinds: corruptions, such as fog or gaussian_noise; empty: the 15 of the benchmark, without the 4 extra ones.
        severities: from 1 (mild) to 5; empty: all.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019; the files: doi 10.5281/zenodo.2535967 and 10.5281/zenodo.3555552.
    """
    return _read(f"CIFAR-{count}-C", count, root, kinds, severities)


@dataclass(frozen=True)
class _CorruptedSplit:
    """Images of several files, read from disk on demand.

    Args:
        files: arrays of all kinds, (5 n, 32, 32, 3) uint8, mapped into memory.
        names: names and sizes of the files, for the fingerprint.
        places: (m, 2) file and row of every image.
        labels: (m,) int64.
    """

    files: Sequence[NDArray[np.uint8]]
    names: str
    places: NDArray[np.int64]
    labels: Tensor
    in_memory: ClassVar[bool] = False

    def read(self, index: Tensor) -> Tensor:
        chosen = self.places[index.numpy()]
        images = np.empty((len(chosen), _SIDE, _SIDE, 3), dtype=np.uint8)
        for number in np.unique(chosen[:, 0]):
            is_here = chosen[:, 0] == number
            images[is_here] = self.files[number][chosen[is_here, 1]]
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def fingerprint(self) -> bytes:
        """Return a digest of kinds, severities and file sizes, without reading pixels."""
        return hashlib.sha256(self.names.encode() + self.places.tobytes()).digest()


def _read(name: str, classes: int, root: str, kinds: Sequence[str], severities: Sequence[int]) -> Source:
    kinds, severities = check_corruptions(kinds, severities)
    folder = absolute(root)
    folder = folder / name if (folder / name).is_dir() else folder
    missing = [file for file in (*(f"{kind}.npy" for kind in kinds), "labels.npy") if not (folder / file).is_file()]
    if missing:
        raise RobustCliError(
            f"data.root: {name} is not in {folder} (expected there: {', '.join(missing)}); set data.root to the folder "
            f"that contains {name}/, unpacked as published"
        )
    labels = _array(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % _SEVERITIES:
        raise RobustCliError(
            f"data.root: {folder / 'labels.npy'}: found {labels.dtype} of shape {labels.shape}; expected labels of "
            f"{_SEVERITIES} times all images"
        )
    count = len(labels) // _SEVERITIES
    wrong = [label for label in np.unique(labels).tolist() if not 0 <= label < classes]
    if wrong:
        raise RobustCliError(
            f"data.root: {folder / 'labels.npy'}: found the label {wrong[0]}; expected 0 to {classes - 1}"
        )
    files = [_images(folder / f"{kind}.npy", len(labels)) for kind in kinds]
    cells = [
        np.stack([np.full(count, number), (severity - 1) * count + np.arange(count)], axis=1)
        for number in range(len(kinds))
        for severity in severities
    ]
    places = np.concatenate(cells)
    if len(cells) > 1:
        places = places[fixed_order(len(places)).numpy()]
    own = torch.from_numpy(labels[places[:, 1]].astype(np.int64))
    names = " ".join(f"{kind} {(folder / f'{kind}.npy').stat().st_size}" for kind in kinds)
    train = TensorSplit(torch.zeros((0, 3, _SIDE, _SIDE), dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    mean, std = statistics(classes)
    test = _CorruptedSplit(files, names, places, own)
    return Source(train, test, [str(label) for label in range(classes)], mean, std)


def _images(path: Path, count: int) -> NDArray[np.uint8]:
    images = _array(path)
    if images.shape != (count, _SIDE, _SIDE, 3) or images.dtype != np.uint8:
        raise RobustCliError(
            f"data.root: {path}: found {images.dtype} of shape {images.shape}; expected uint8 of shape "
            f"({count}, {_SIDE}, {_SIDE}, 3), as published"
        )
    return images


def _array(path: Path) -> NDArray[Any]:
    """Map an array on disk into memory."""
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise RobustCliError(f"data.root: {path}: not a NumPy array: {error}; download it again") from error
    return found
