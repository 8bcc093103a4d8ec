"""A source of images, split and ready for the device: what training and evaluation read from."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.data import augmentation
from robustcli.data.augmentation import AugmentSettings
from robustcli.data.datasets import Source
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.data.extra import Extra, Joined
from robustcli.data.stores import Store, batches_of, store
from robustcli.data.targets import Labels, Targets
from robustcli.errors import RobustCliError
from robustcli.threat.noise import Noise

SplitName = Literal["train", "val", "test"]

# Test images by which a data set is recognized.
_DIGESTED = 64
# Images read at once where the caller does not say.
_CHUNK = 256


@runtime_checkable
class Fingerprinted(Protocol):
    """A split that is too large to be read only for its digest, and can say what it is."""

    def fingerprint(self) -> bytes:
        """Bytes that differ when the images differ, as far as that shows without reading them."""
        ...


@dataclass(frozen=True)
class _Part:
    """One split: which rows of a store belong to it, in its fixed order."""

    store: Store
    rows: Tensor


class Data:
    """The splits of one source on one device; made by `prepare`.

    Args:
        shape: of one image, with the number of classes.
        mean, std: per channel, of pixels in [0, 1].
        classes: their names.
        decode: how files became pixels where that changes them; "" if exact.
        digest: SHA-256 over the shapes, labels and image bytes of the source's train and test part, before
            anything is cut from them. Of images that are read from files when needed, over labels, file
            names and file sizes instead.
        extra_digest: of the images that training adds to them; "" if there are none.
        classes_are_known: whether there are no other classes than `classes`.
        is_whole: whether the train part was read; otherwise `mean` and `std` are empty.
        is_labelled: whether every image of training has a label; of those that are added some may have none.
    """

    def __init__(
        self,
        source: Source,
        parts: dict[SplitName, _Part],
        device: torch.device,
        extra: Extra | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.shape = shape_of(source)
        self.mean, self.std = source.mean, source.std
        self.classes: Sequence[str] = source.classes
        self.decode = source.decode
        self.classes_are_known, self.is_whole = source.classes_are_known, source.is_whole
        self.digest = _digest(source)
        self._labels_by_name: Tensor | None = None
        self.extra_digest = "" if extra is None else extra.digest
        self.is_labelled = extra is None or extra.is_labelled
        self._extra = extra
        self._source_size = len(source.train.labels)
        self._targets = targets or Targets()
        self._parts = parts
        # A tensor and not a number: CUDA divides by a number through its reciprocal, which is not exact.
        self._levels = torch.tensor(255.0, device=device)

    @property
    def sizes(self) -> dict[str, int]:
        """Images in train, val and test."""
        return {name: len(part.rows) for name, part in self._parts.items()}

    def steps_per_epoch(self, batch_size: int, drop_last: bool) -> int:
        """Batches that train_batches yields for one order."""
        count = len(self._train().rows)
        if drop_last and count < batch_size:
            raise RobustCliError(
                f"train.batch_size: {batch_size} is more than the {count} train images, and train.drop_last "
                f"leaves no batch; use at most {count}, or train.drop_last=false"
            )
        return count // batch_size if drop_last else -(-count // batch_size)

    def order(self, generator: torch.Generator) -> Tensor:
        """The train split shuffled for one epoch: (n,) int64 on the CPU, as is the generator."""
        return torch.randperm(len(self._train().rows), generator=generator)

    def in_turn(self, generator: torch.Generator, batch_size: int, drop_last: bool) -> Tensor:
        """What one epoch reads where the train split has two halves: (n,) int64 on the CPU, one of each in turn.

        The halves are fixed, each is shuffled for itself. Of an odd number of images, the last is followed by one
        of the other half that comes twice.

        Raises:
            RobustCliError: there is one image alone.
        """
        count = len(self._train().rows)
        if count < 2:
            raise RobustCliError("data.train_size: 1 image cannot be halved; use at least 2")
        middle = (count + 1) // 2
        one = torch.randperm(middle, generator=generator)
        other = middle + torch.randperm(count - middle, generator=generator)
        pairs = torch.stack([one, torch.cat([other, other[: count % 2]])], 1)
        return pairs.flatten()[: self.steps_per_epoch(batch_size, drop_last) * batch_size]

    def epoch(
        self, generator: torch.Generator, batch_size: int, drop_last: bool, *, split_in_two: bool = False
    ) -> Tensor:
        """What one epoch reads, batch after batch: (n,) int64 on the CPU, as is the generator.

        Without extra images it is `order`. With them every batch begins with the next of the data set's own,
        as far as they are asked for: an epoch has as many batches as it had without, and so sees a part of
        them. The rest of the batch is drawn from the extra images, with replacement; their numbers follow
        those of the train split. Nor are halves for them: those are of the data set's own images, as `in_turn`
        gives them.
        """
        if split_in_two:
            assert self._extra is None
            return self.in_turn(generator, batch_size, drop_last)
        own = self.order(generator)
        fresh = self._extra.per_batch(batch_size) if self._extra else 0
        if self._extra is None or not fresh:
            return own
        batches = torch.split(own, batch_size - fresh)[: self.steps_per_epoch(batch_size, drop_last)]
        drawn = torch.randint(len(self._extra.split.labels), (len(batches), fresh), generator=generator) + len(own)
        return torch.cat([row for pair in zip(batches, drawn, strict=True) for row in pair])

    def smallest_batch(self, batch_size: int, drop_last: bool, *, split_in_two: bool = False) -> int:
        """Images in the smallest batch of an epoch."""
        order = self.epoch(torch.Generator(), batch_size, drop_last, split_in_two=split_in_two)
        return batch_size if drop_last else (len(order) - 1) % batch_size + 1

    def train_batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        augment: AugmentSettings,
        rng: Noise,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Labels]]:
        """Augmented images in [0, 1] and their labels, batch by batch, on the device.

        Numbers are drawn from `rng` when a batch is asked for and never ahead, so that a run may be resumed
        between two batches from the state that `rng` has there.

        Args:
            order: of the train split, as `order` or `epoch` gives it.
            batch_size: images in a batch.
            drop_last: whether a last batch that is not full is left out.
            augment: what is done to each image.
            rng: source of noise on the device.
            skip: batches to leave out at the beginning, at no cost.
        """
        part = self._train()
        if drop_last:
            order = order[: len(order) - len(order) % batch_size]
        order = order[skip * batch_size :]
        own = len(part.rows)
        rows = part.rows if self._extra is None else torch.cat([part.rows, self._extra_rows])
        # All at once: a copy from ordinary memory waits for the device.
        is_extra = batches_of((order >= own).to(self._levels.device), batch_size)
        batches = part.store.batches(rows[order], batch_size)
        for (images, labels), is_added in zip(batches, is_extra, strict=True):
            given = self._targets(labels, is_added, self.shape.classes)
            yield self._pixels(augmentation.augment(images, augment, rng)), given

    def evaluation(self, split: SplitName, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `count` images of a split, or all, in its fixed order and unchanged, with their labels."""
        part = self._train() if split == "train" else self._parts[split]
        size = len(part.rows)
        if size == 0:
            hint = "set data.val_size" if split == "val" else f"the data set has no {split} part"
            raise RobustCliError(f"data: there are no {split} images; {hint}")
        if count is not None and not 1 <= count <= size:
            raise RobustCliError(f"data: {count} {split} images were asked for; there are {size}")
        batches = list(part.store.batches(part.rows[:count], _CHUNK))
        images = torch.cat([images for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        if self._labels_by_name is not None:
            labels = self._labels_by_name.to(labels.device)[labels]
        return self._pixels(images), labels

    @property
    def test_digest(self) -> str:
        """SHA-256 of the first test images and their labels, and of how many there are: what is known in any case."""
        x, y = self.evaluation("test", min(_DIGESTED, self.sizes["test"]))
        digest = hashlib.sha256(f"{self.sizes['test']} {tuple(x.shape)}".encode())
        digest.update(x.cpu().numpy().tobytes() + y.cpu().numpy().tobytes())
        return digest.hexdigest()

    def name_classes(self, names: Sequence[str]) -> None:
        """Number the test labels as a network does that names its classes, where only the test part was read.

        A test part may lack classes, and then its own numbers are others.
        """
        if self.is_whole or len(names) < len(self.classes):
            return
        if set(self.classes) <= set(names):
            self._labels_by_name = torch.tensor([list(names).index(name) for name in self.classes])
        elif self.classes_are_known:
            return
        self.classes = list(names)
        self.shape = replace(self.shape, classes=len(names))

    def clean_batches(self, batch_size: int) -> Iterator[Tensor]:
        """Train images without augmentation, in the same order every time."""
        part = self._train()
        for images, _ in part.store.batches(part.rows, batch_size):
            yield self._pixels(images)

    def _train(self) -> _Part:
        if len(self._parts["train"].rows) == 0:
            raise RobustCliError(
                "data: there are no train images, so this data set serves for evaluation only; "
                "use one that has a train part"
            )
        return self._parts["train"]

    @property
    def _extra_rows(self) -> Tensor:
        """Where the extra images lie in the store of the train part: after all that the source has."""
        assert self._extra is not None
        return self._source_size + torch.arange(len(self._extra.split.labels))

    def _pixels(self, images: Tensor) -> Tensor:
        return images.float() / self._levels if images.dtype == torch.uint8 else images


def prepare(
    source: Source,
    *,
    val_size: int,
    train_size: int | None,
    device: torch.device,
    workers: int,
    extra: Extra | None = None,
    targets: Targets | None = None,
) -> Data:
    """Cut validation images from train and put what fits on the device.

    The cut follows one fixed permutation, whatever the seed of the run: its first `val_size` images are for
    validation, those after them for training. Splits that lie in memory are held on the device, unless
    that is a GPU of whose free memory they would take more than a quarter.

    Args:
        source: the data set.
        val_size: train images set apart for validation.
        train_size: how many of the others are used; None is all.
        device: where batches are wanted.
        workers: threads that read images ahead when they are not held on the device; with 0 the caller reads.
        extra: images of which every training batch has a share; neither validation nor anything else sees them.
        targets: what training asks of an image; the label by default.
    """
    total = len(source.train.labels)
    left = total - val_size
    if val_size > 0 and left < 1:
        raise RobustCliError(
            f"data.val_size: {val_size} of {total} train images leave none to train on; "
            + (f"use at most {total - 1}" if total > 1 else "use 0 to evaluate only")
        )
    if train_size is not None and train_size > left:
        rest = f" after {val_size} were set apart for validation" if val_size else ""
        raise RobustCliError(f"data.train_size: {train_size} is more than the {left} train images{rest}")
    order = fixed_order(total)
    train_end = total if train_size is None else val_size + train_size
    train = store(source.train if extra is None else Joined(source.train, extra.split), device, workers)
    test = store(source.test, device, workers)
    parts: dict[SplitName, _Part] = {
        "train": _Part(train, order[val_size:train_end]),
        "val": _Part(train, order[:val_size]),
        "test": _Part(test, torch.arange(len(source.test.labels))),
    }
    return Data(source, parts, device, extra, targets)


def shape_of(source: Source) -> ImageShape:
    """Of the images of a source, with the number of its classes."""
    split = source.train if len(source.train.labels) else source.test
    _, channels, height, width = split.read(torch.tensor([0])).shape
    return ImageShape(channels, height, width, classes=len(source.classes))


def _digest(source: Source) -> str:
    digest = hashlib.sha256(str(shape_of(source)).encode())
    for split in (source.train, source.test):
        digest.update(split.labels.numpy().tobytes())
        if isinstance(split, Fingerprinted):
            digest.update(split.fingerprint())
            continue
        for rows in batches_of(torch.arange(len(split.labels)), _CHUNK):
            digest.update(split.read(rows).numpy().tobytes())
    return digest.hexdigest()
