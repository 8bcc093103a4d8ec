"""Images and batches of an epoch, as far as a spec states them."""

from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import TrainSettings


def images_of_epoch(data: MemberSpec) -> int | None:
    """Return the number of the data set's own images in an epoch; None if it depends on files."""
    if data.options.train_size is not None:
        return int(data.options.train_size)
    total = data.member.train_images
    return None if total is None else max(0, total - data.options.val_size)


def batches_of_epoch(data: MemberSpec, train: TrainSettings) -> int | None:
    """Return the number of batches in an epoch; None if it depends on files."""
    images = images_of_epoch(data)
    if images is None:
        return None
    return images // train.batch_size if train.drop_last else -(-images // train.batch_size)
