"""Handwritten digits of 8 x 8 pixels, included in scikit-learn."""

from robustcli.data.datasets import DATASETS, Source
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.embedded_digits import embedded_digits


@DATASETS.register("digits", image=(1, 8, 8), classes=10, train_images=1_437, test_images=360)
def digits() -> Source:
    """1,797 handwritten digits of 8 x 8 pixels with 17 grey levels, included in scikit-learn (no download).

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
