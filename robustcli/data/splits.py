"""The splits of a source of images, on the device."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.data import augmentation
from robustcli.data.datasets import Crops, Source
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.data.extra import Extra, Joined
from robustcli.data.images import Images
from robustcli.data.stores import Plan, Store, batches_of, store
from robustcli.data.targets import Labels, Targets
from robustcli.errors import RobustCliError
from robustcli.specs.settings import Augment
from robustcli.store.provenance import Sizes
from robustcli.threat.noise import Noise

SplitName = Literal["train", "val", "test"]

# Number of test images in the digest that identifies a data set.
_DIGESTED = 64
# Default number of images to read at once.
_CHUNK = 256


@runtime_checkable
class Fingerprinted(Protocol):
    """A split that is too large to compute its digest, and has a fingerprint instead."""

    def fingerprint(self) -> bytes:
        """Return bytes that identify the images as far as possible without reading them."""
        ...


@dataclass(frozen=True)
class _Part:
    """One split: its rows of a store, in a fixed order."""

    store: Store
    rows: Tensor


class Data:
    """The splits of one source on one device; made by `prepare`.

    Args:
        shape: shape of one image, with the number of classes.
        mean, std: mean and standard deviation per channel, of pixels in [0, 1].
        classes: names of the classes.
        decode: decoding of the files if it changes pixels, such as "JPEG"; "" if exact.
        digest: SHA-256 over the shapes, labels and image bytes of the whole train and test part. For images that are
            read from files when needed: over labels, file names and file sizes.
        extra_digest: digest of the extra training images; "" if there are none.
        classes_are_known: there are no other classes than `classes`.
        is_whole: the train part was read; otherwise `mean` and `std` are empty.
        is_labeled: all training images have a label; extra images may have none.
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
        self.digest = source.digest or _digest(source)
        self._labels_by_name: Tensor | None = None
        self.extra_digest = "" if extra is None else extra.digest
        self.is_labeled = extra is None or extra.is_labeled
        self._extra = extra
        self._cuts = source.cut is not None
        self._source_size = len(source.train.labels)
        self._targets = targets or Targets()
        self._parts = parts
        # A tensor, because CUDA divides by a number through its reciprocal, which is not exact.
        self._levels = torch.tensor(255.0, device=device)

    @property
    def sizes(self) -> Sizes:
        """Number of images by split."""
        return Sizes(train=self.size("train"), val=self.size("val"), test=self.size("test"))

    def size(self, split: SplitName) -> int:
        """Return the number of images of a split."""
        return len(self._parts[split].rows)

    def steps_per_epoch(self, batch_size: int, drop_last: bool) -> int:
        """Return the number of batches of an epoch."""
        count = len(self._train().rows)
        if drop_last and count < batch_size:
            raise RobustCliError(
                f"train.batch_size: {batch_size} is more than the {count} train images, so train.drop_last "
                f"leaves no batch; use at most {count}, or train.drop_last=false"
            )
        return count // batch_size if drop_last else -(-count // batch_size)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the train split in random order: (n,) int64 on the CPU; the generator is on the CPU too."""
        return torch.randperm(len(self._train().rows), generator=generator)

    def in_turn(self, generator: torch.Generator, batch_size: int, drop_last: bool) -> Tensor:
        """Return the order of an epoch that alternates between two halves of the train split: (n,) int64 on the CPU.

        The halves are fixed, and each is shuffled. If the number of images is odd, one image of the smaller half occurs
        twice.

        Raises:
            RobustCliError: there is only one image.
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
        """Return the order of an epoch: (n,) int64 on the CPU; the generator is on the CPU too.

        Without extra images it is `order`, or `in_turn` if the train split has two halves. With extra images, a batch
        starts with images of the data set, followed by extra images that are drawn with replacement; their numbers
        follow those of the train split. The number of batches does not change, so an epoch contains only a part of the
        data set. Extra images cannot be combined with halves.
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
        """Return the size of the smallest batch of an epoch."""
        order = self.epoch(torch.Generator(), batch_size, drop_last, split_in_two=split_in_two)
        return batch_size if drop_last else (len(order) - 1) % batch_size + 1

    def train_batches(
        self,
        order: Tensor,
        batch_size: int,
        *,
        drop_last: bool,
        augment: Augment,
        rng: Noise,
        skip: int = 0,
        crop_chance: Tensor | None = None,
        after: Callable[[], tuple[Tensor, Tensor | None] | None] = lambda: None,
    ) -> Iterator[tuple[Tensor, Labels]]:
        """Yield batches of augmented images in [0, 1] and their labels, on the device.

        Random numbers for a batch are drawn from `rng` only when it is requested, so that a run can resume between two
        batches from the state of `rng`.

        Args:
            order: order of the train split, from `order` or `epoch`.
            batch_size: images in a batch.
            drop_last: omit an incomplete last batch.
            augment: augmentation of each image.
            rng: source of noise on the device.
            skip: batches to skip at the start, without cost.
            crop_chance: random numbers of `crop_chance` for the images in `order`, if crops are cut while decoding.
            after: returns order and random numbers of the epoch that comes next, to read it ahead; None: none does.
        """
        part = self._train()

        def plan_of(order: Tensor, chance: Tensor | None, begin: int = 0) -> Plan:
            end = len(order) - len(order) % batch_size if drop_last else len(order)
            crops = None if chance is None else Crops(chance[begin:end], augment.resized_crop)
            return Plan(rows[order[begin:end]], crops)

        def following() -> Plan | None:
            found = after()
            return None if found is None else plan_of(*found)

        if drop_last:
            order = order[: len(order) - len(order) % batch_size]
        own, begin = len(part.rows), skip * batch_size
        rows = part.rows if self._extra is None else torch.cat([part.rows, self._extra_rows])
        # One copy for all batches, because a copy from pageable memory waits for the device.
        is_extra = batches_of((order[begin:] >= own).to(self._levels.device), batch_size)
        batches = part.store.batches(plan_of(order, crop_chance, begin), batch_size, following)
        for (images, labels), is_added in zip(batches, is_extra, strict=True):
            given = self._targets(labels, is_added, self.shape.classes)
            is_cropped = crop_chance is not None
            yield self._pixels(augmentation.augment(images, augment, rng, is_cropped=is_cropped)), given

    def crop_chance(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return random numbers (count, 4) of crops that are cut while images are decoded; None if they are not."""
        return torch.rand((count, 4), generator=generator) if self._cuts else None

    def images(self, split: SplitName, count: int | None = None) -> tuple[Images, Tensor]:
        """Return the first `count` images of a split, or all, and their labels, in fixed order without augmentation.

        The images stay in their stored form and become floats where they are indexed.
        """
        part = self._train() if split == "train" else self._parts[split]
        size = len(part.rows)
        if size == 0:
            hint = "set data.val_size" if split == "val" else f"the data set has no {split} part"
            raise RobustCliError(f"data: there are no {split} images; {hint}")
        if count is not None and not 1 <= count <= size:
            raise RobustCliError(
                f"data: {count} {split} images requested; there are only {size}, which are all used by default"
            )
        rows = part.rows[:count]
        labels = part.store.labels[rows.to(part.store.labels.device)]
        if self._labels_by_name is not None:
            labels = self._labels_by_name.to(labels.device)[labels]
        device = self._levels.device
        images = Images(part.store.reader(rows), self._pixels, torch.arange(len(rows)), self.shape.size, device)
        return images, labels.to(device)

    def evaluation(self, split: SplitName, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the same images as `images`, all as one tensor of floats: for a part that fits into memory."""
        images, labels = self.images(split, count)
        return images[:], labels

    @property
    def test_digest(self) -> str:
        """SHA-256 of the first test images, their labels and the number of test images, all available without train."""
        x, y = self.evaluation("test", min(_DIGESTED, self.sizes.test))
        digest = hashlib.sha256(f"{self.sizes.test} {tuple(x.shape)}".encode())
        digest.update(x.cpu().numpy().tobytes() + y.cpu().numpy().tobytes())
        return digest.hexdigest()

    def name_classes(self, names: Sequence[str]) -> None:
        """Renumber the test labels to the classes of a network, if only the test part was read.

        A test part may lack classes; then its labels have other numbers.
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
        """Yield batches of train images in fixed order without augmentation.

        A last batch of a single image is left out, because batch norms may be unable to normalize it.
        """
        part = self._train()
        rows = part.rows[:-1] if len(part.rows) % batch_size == 1 and len(part.rows) > 1 else part.rows
        for images, _ in part.store.batches(Plan(rows), batch_size):
            yield self._pixels(images)

    def _train(self) -> _Part:
        if len(self._parts["train"].rows) == 0:
            raise RobustCliError(
                "data: there are no train images, so this data set is for evaluation only; "
                "use one that has a train part"
            )
        return self._parts["train"]

    @property
    def _extra_rows(self) -> Tensor:
        """Rows of the extra images in the store of the train part, after those of the source."""
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
    """Split a source into train, validation and test, and move splits to the device if they fit.

    Validation images are the first `val_size` images of one fixed permutation of the train part, independent of the
    seed of the run; training images follow. Splits in memory are moved to the device, unless they would take more than
    a quarter of the free memory of a GPU.

    Args:
        source: data set.
        val_size: number of train images for validation.
        train_size: number of the other images to use for training; None: all.
        device: device of the batches.
        workers: threads that read images ahead if they are not on the device; 0: read in the caller.
        extra: extra images, a part of every training batch and used for nothing else.
        targets: label smoothing of training images.
    """
    total = len(source.train.labels)
    left = total - val_size
    if val_size > 0 and left < 1:
        raise RobustCliError(
            f"data.val_size: {val_size} of {total} train images leave no image for training; "
            + (f"use at most {total - 1}" if total > 1 else "use 0 to evaluate only")
        )
    if train_size is not None and train_size > left:
        rest = f" that remain after {val_size} for validation" if val_size else ""
        raise RobustCliError(f"data.train_size: {train_size} is more than the {left} train images{rest}")
    order = fixed_order(total)
    train_end = total if train_size is None else val_size + train_size
    train = store(source.train if extra is None else Joined(source.train, extra.split), device, workers, source.cut)
    test = store(source.test, device, workers)
    parts: dict[SplitName, _Part] = {
        "train": _Part(train, order[val_size:train_end]),
        "val": _Part(train, order[:val_size]),
        "test": _Part(test, torch.arange(len(source.test.labels))),
    }
    return Data(source, parts, device, extra, targets)


def shape_of(source: Source) -> ImageShape:
    """Return the shape of the images of a source and the number of classes."""
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
