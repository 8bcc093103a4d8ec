"""CIFAR-10 and CIFAR-100."""

import torch
import torchvision

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.published import read_published


@DATASETS.register("cifar10", image=(3, 32, 32), classes=10, train_images=50_000, test_images=10_000)
def cifar10(*, root: str = "data", download: bool = False) -> Source:
    """CIFAR-10: colour photographs of 32 x 32 pixels in 10 classes, 50,000 for training and 10,000 for testing.

    Args:
        root: folder that contains cifar-10-batches-py/ as published; checksums are verified.
        download: download missing files into the folder.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009.
    """
    return _read(
        "CIFAR-10",
        torchvision.datasets.CIFAR10,
        root,
        download,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2471, 0.2435, 0.2616),
    )


@DATASETS.register("cifar100", image=(3, 32, 32), classes=100, train_images=50_000, test_images=10_000)
def cifar100(*, root: str = "data", download: bool = False) -> Source:
    """CIFAR-100: colour photographs of 32 x 32 pixels in 100 classes, 50,000 for training and 10,000 for testing.

    Args:
        root: folder that contains cifar-100-python/ as published; checksums are verified.
        download: download missing files into the folder.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009.
    """
    return _read(
        "CIFAR-100",
        torchvision.datasets.CIFAR100,
        root,
        download,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )


def _read(
    name: str,
    reader: type[torchvision.datasets.CIFAR10],
    root: str,
    download: bool,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Source:
    def read(folder: str) -> Source:
        train, test = (reader(folder, train=is_train, download=download) for is_train in (True, False))
        return Source(_split(train), _split(test), classes=list(train.classes), mean=mean, std=std)

    files = [pair[0] for pair in (*reader.train_list, *reader.test_list)] + [reader.meta["filename"]]
    return read_published(name, root, [f"{reader.base_folder}/{file}" for file in files], download, read)


def _split(part: torchvision.datasets.CIFAR10) -> TensorSplit:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return TensorSplit(images, torch.tensor(part.targets, dtype=torch.int64))
