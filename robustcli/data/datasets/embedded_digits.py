"""The handwritten digits of scikit-learn, in the two parts that all data sets of digits share."""

import torch
from sklearn.datasets import load_digits

from robustcli.data.datasets import TensorSplit
from robustcli.data.datasets.fixed_order import fixed_order

_TEST_SIZE = 360


def embedded_digits() -> tuple[TensorSplit, TensorSplit]:
    """Return the train and test part: images (n, 1, 8, 8) with pixels v / 16, exact in float32, and digits."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None].float() / 16
    labels = torch.from_numpy(bunch.target).long()
    order = fixed_order(len(labels))
    test, train = order[:_TEST_SIZE], order[_TEST_SIZE:]
    return TensorSplit(images[train], labels[train]), TensorSplit(images[test], labels[test])
