"""Length of a training as far as a spec tells: images and batches of an epoch."""

from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import TrainSettings


def images_of_epoch(data: MemberSpec) -> int | None:
    """The data set's own images that training sees once in an epoch; None where only its files know."""
    if data.options.train_size is not None:
        return int(data.options.train_size)
    total = data.member.train_images
    return None if total is None else max(0, total - data.options.val_size)


def batches_of_epoch(data: MemberSpec, train: TrainSettings) -> int | None:
    """As many as training makes of them; None where only the files of the data set know."""
    images = images_of_epoch(data)
    if images is None:
        return None
    return images // train.batch_size if train.drop_last else -(-images // train.batch_size)
