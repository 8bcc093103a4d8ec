"""MNIST and Fashion-MNIST."""

import torchvision

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.published import published_folder

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@DATASETS.register("mnist", image=(1, 28, 28), classes=10, train_images=60_000, test_images=10_000)
def mnist(*, root: str = "data", download: bool = False) -> Source:
    """MNIST: handwritten digits of 28 x 28 gray pixels, 60,000 for training and 10,000 for testing.

    Mean 0.1307 and std 0.3081 are those of the train images and the usual choice; fast adversarial training (Wong et
    al., 2020) uses no normalization on MNIST. The second half of the test set is harder, so accuracies on the first n
    test images are slightly too high.

    Args:
        root: folder that contains MNIST/raw/ with the four published files, unpacked.
        download: download missing files into the folder; checksums are verified.

    Reference: LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 1998.
    """
    return _read("MNIST", torchvision.datasets.MNIST, root, download, mean=0.1307, std=0.3081)


@DATASETS.register("fashion_mnist", image=(1, 28, 28), classes=10, train_images=60_000, test_images=10_000)
def fashion_mnist(*, root: str = "data", download: bool = False) -> Source:
    """Fashion-MNIST: articles of clothing, 28 x 28 gray pixels, 60,000 for training and 10,000 for testing.

    Mean 0.2860 and std 0.3530 are those of the train images.

    Args:
        root: folder that contains FashionMNIST/raw/ with the four published files, unpacked.
        download: download missing files into the folder; checksums are verified.

    Reference: Xiao, Rasul and Vollgraf, arXiv:1708.07747, 2017.
    """
    return _read("Fashion-MNIST", torchvision.datasets.FashionMNIST, root, download, mean=0.2860, std=0.3530)


def _read(
    name: str,
    reader: type[torchvision.datasets.MNIST],
    root: str,
    download: bool,
    *,
    mean: float,
    std: float,
) -> Source:
    files = [f"{reader.__name__}/raw/{file}" for file in _FILES]
    with published_folder(name, root, files, download) as folder:
        parts = [reader(folder, train=is_train, download=download) for is_train in (True, False)]
        for part in parts:
            if len(part.data) != len(part.targets):
                raise ValueError(f"{len(part.data)} images have {len(part.targets)} labels")
        train, test = (TensorSplit(part.data[:, None], part.targets.long()) for part in parts)
        return Source(train, test, classes=list(reader.classes), mean=(mean,), std=(std,))
