"""Handwritten digits of 8 x 8 pixels, included in scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError

_TEST_SIZE = 360


@DATASETS.register("digits", image=(1, 8, 8), classes=10, train_images=1_437, test_images=360)
def digits() -> Source:
    """1,797 handwritten digits of 8 x 8 pixels with 17 gray levels, included in scikit-learn (no download).

    Pixels are v / 16, exact in float32. The split belongs to this project, because scikit-learn has none: in the order
    of `numpy.random.RandomState(0).permutation(1797)` the first 360 images are for testing and the other 1,437 for
    training, not stratified by class. Digits of the same writer may be in both parts. Mean and std are those of the
    train images.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998; the test part, as included in scikit-learn.
    """
    train, test = embedded_digits()
    mean, std = channel_statistics(train.images)
    return Source(train=train, test=test, classes=[str(digit) for digit in range(10)], mean=mean, std=std)


def embedded_digits() -> tuple[TensorSplit, TensorSplit]:
    """Return the train and test part: images (n, 1, 8, 8) with pixels v / 16, exact in float32, and digits.

    The file is read directly, because importing scikit-learn takes as long as importing torch.

    Raises:
        RobustCliError: scikit-learn or its file is missing.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise RobustCliError("data.name: 'digits' are included in scikit-learn, which is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file; expected the digits that scikit-learn includes")
    # Rows of 64 pixels and the digit.
    table = np.loadtxt(path, delimiter=",")
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8).float() / 16
    labels = torch.from_numpy(table[:, -1]).long()
    order = fixed_order(len(labels))
    test, train = order[:_TEST_SIZE], order[_TEST_SIZE:]
    return TensorSplit(images[train], labels[train]), TensorSplit(images[test], labels[test])
