"""CIFAR-10 and CIFAR-100."""

from typing import Literal

import torch
import torchvision

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.published import published_folder

# Reader, mean and std by number of classes.
_PUBLISHED = {
    10: (torchvision.datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: (torchvision.datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@DATASETS.register(
    "cifar10", fixed={"count": 10}, image=(3, 32, 32), classes=10, train_images=50_000, test_images=10_000
)
@DATASETS.register(
    "cifar100", fixed={"count": 100}, image=(3, 32, 32), classes=100, train_images=50_000, test_images=10_000
)
def cifar(*, count: Literal[10, 100], root: str = "data", download: bool = False) -> Source:
    """CIFAR-{count}: photographs of 32 x 32 color pixels in {count} classes, 50,000 to train and 10,000 to test.

    Args:
        count: number of classes.
        root: folder that contains cifar-10-batches-py/ or cifar-100-python/ as published; checksums are verified.
        download: download missing files into the folder.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009.
    """
    reader, mean, std = _PUBLISHED[count]
    files = [pair[0] for pair in (*reader.train_list, *reader.test_list)] + [reader.meta["filename"]]
    places = [f"{reader.base_folder}/{file}" for file in files]
    with published_folder(f"CIFAR-{count}", root, places, download) as folder:
        train, test = (reader(folder, train=is_train, download=download) for is_train in (True, False))
        return Source(_split(train), _split(test), classes=list(train.classes), mean=mean, std=std)


def statistics(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the published training images."""
    return _PUBLISHED[count][1:]


def _split(part: torchvision.datasets.CIFAR10) -> TensorSplit:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return TensorSplit(images, torch.tensor(part.targets, dtype=torch.int64))
