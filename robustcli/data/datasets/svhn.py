"""SVHN: digits from photographs of house numbers."""

import numpy as np
import torch
import torchvision

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.published import published_folder


@DATASETS.register("svhn", image=(3, 32, 32), classes=10, train_images=73_257, test_images=26_032)
def svhn(*, root: str = "data", download: bool = False) -> Source:
    """SVHN: digits of house numbers, 32 x 32 color pixels, 73,257 for training and 26,032 for testing.

    The extra part is not used. Mean and std are 0.5 in every channel, as in Rice et al., ICML 2020.

    Args:
        root: folder that contains train_32x32.mat and test_32x32.mat as published; checksums are verified.
        download: download missing files into the folder.

    Reference: Netzer, Wang, Coates, Bissacco, Wu and Ng, NIPS Workshop on Deep Learning and Unsupervised
        Feature Learning, 2011.
    """
    reader, names = torchvision.datasets.SVHN, ("train", "test")
    with published_folder("SVHN", root, [reader.split_list[name][1] for name in names], download) as folder:
        train, test = (_split(reader(folder, name, download=download)) for name in names)
    return Source(train, test, classes=[str(digit) for digit in range(10)], mean=(0.5,) * 3, std=(0.5,) * 3)


def _split(part: torchvision.datasets.SVHN) -> TensorSplit:
    images = torch.from_numpy(np.ascontiguousarray(part.data))
    return TensorSplit(images, torch.from_numpy(part.labels))
