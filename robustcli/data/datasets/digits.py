"""Handwritten digits of 8 x 8 pixels, carried by scikit-learn."""

from robustcli.data.datasets import DATASETS, Source
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.embedded_digits import embedded_digits


@DATASETS.register("digits", image=(1, 8, 8), classes=10, train_images=1_437, test_images=360)
def digits() -> Source:
    """1,797 real digits of 8 x 8 pixels and 17 grey levels, with nothing to download.

    Pixels are v / 16, exact in float32. The split is ours, since scikit-learn publishes none: all images in
    the order of `numpy.random.RandomState(0).permutation(1797)`, the first 360 for test and the other 1,437
    for train, not stratified by class. Writers are in both parts. Mean and std are those of the train images.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998; its test part, as scikit-learn carries it.
    """
    train, test = embedded_digits()
    mean, std = channel_statistics(train.images)
    return Source(train=train, test=test, classes=[str(digit) for digit in range(10)], mean=mean, std=std)
