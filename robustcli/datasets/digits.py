"""Handwritten digits of 8 x 8 pixels, carried by scikit-learn."""

import torch
from sklearn.datasets import load_digits

from robustcli.datasets import DATASETS, Source, TensorSplit
from robustcli.datasets.channel_statistics import channel_statistics
from robustcli.datasets.fixed_order import fixed_order

_TEST_SIZE = 360


@DATASETS.register("digits")
def digits() -> Source:
    """1,797 real digits of 8 x 8 pixels and 17 grey levels, with nothing to download.

    Pixels are v / 16, exact in float32. The split is ours, since scikit-learn publishes none: all images in
    the order of `numpy.random.RandomState(0).permutation(1797)`, the first 360 for test and the other 1,437
    for train, not stratified by class. Writers are in both parts. Mean and std are those of the train images.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998; its test part, as scikit-learn carries it.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None].float() / 16
    labels = torch.from_numpy(bunch.target).long()
    order = fixed_order(len(labels))
    test, train = order[:_TEST_SIZE], order[_TEST_SIZE:]
    mean, std = channel_statistics(images[train])
    return Source(
        train=TensorSplit(images[train], labels[train]),
        test=TensorSplit(images[test], labels[test]),
        classes=[str(digit) for digit in range(10)],
        mean=mean,
        std=std,
    )
