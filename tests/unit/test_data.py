"""Splits, batches and their order, from memory and from files."""

import threading
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.splits import Data, prepare
from robustcli.errors import RobustCliError
from robustcli.store.provenance import Sizes
from robustcli.threat.noise import StreamNoise

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MemberSpec:
    crop: int = 0
    pad_mode: Literal["zero", "reflect"] = "reflect"
    flip: bool = False
    cutout: int = 0
    resized_crop: float = 0.0
    rotate: float = 0.0
    jitter: float = 0.0


PLAIN = MemberSpec()
ALL = MemberSpec(crop=1, flip=True, cutout=2, resized_crop=0.5, rotate=10.0, jitter=0.2)


@dataclass(frozen=True)
class Streamed:
    """Presents the images of another split as if they were in files."""

    split: TensorSplit
    broken: int = -1
    in_memory: bool = False

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    def read(self, index: Tensor) -> Tensor:
        if self.broken in index.tolist():
            raise RobustCliError(f"image {self.broken} cannot be decoded")
        return self.split.read(index)


class Named(Streamed):
    """Knows its shape and labels without reading files."""

    def fingerprint(self) -> bytes:
        return b"names"


def _split(count: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return TensorSplit(images, torch.arange(count) % 4)


def _source(train: int = 20, test: int = 6) -> Source:
    return Source(_split(train, 1), _split(test, 2), ["a", "b", "c", "d"], (0.5,) * 3, (0.25,) * 3)


def _streamed(source: Source, kind: Any = Streamed) -> Source:
    return replace(source, train=kind(source.train), test=kind(source.test))


def _prepare(source: Source, val_size: int = 0, train_size: int | None = None, workers: int = 0) -> Data:
    return prepare(source, val_size=val_size, train_size=train_size, device=CPU, workers=workers)


def _noise(seed: int = 0) -> StreamNoise:
    return StreamNoise(torch.Generator().manual_seed(seed))


def _order(data: Data, seed: int = 0) -> Tensor:
    return data.order(torch.Generator().manual_seed(seed))


def _batches(data: Data, size: int, **options: Any) -> list[tuple[Tensor, Tensor]]:
    arguments: dict[str, Any] = {"drop_last": False, "augment": PLAIN, "rng": _noise(), **options}
    return [(x, labels.loss) for x, labels in data.train_batches(_order(data), size, **arguments)]


def _keys(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_pixels_are_exact_quotients() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    split = TensorSplit(levels, torch.tensor([0]))
    x, _ = _prepare(Source(split, split, ["a"], (0.0,), (1.0,))).evaluation("test")
    assert np.array_equal(x.numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(255))
    assert x.dtype == torch.float32


def test_floating_images_pass_as_they_are() -> None:
    images = torch.rand(3, 1, 2, 2)
    split = TensorSplit(images, torch.zeros(3, dtype=torch.int64))
    data = _prepare(Source(split, split, ["a"], (0.0,), (1.0,)))
    x, _ = data.evaluation("test")
    assert torch.equal(x, images)
    x.zero_()
    assert torch.equal(data.evaluation("test")[0], images)


@given(
    st.integers(1, 30),
    st.integers(0, 29),
    st.none() | st.integers(1, 30),
    st.sampled_from([Streamed, None]),
    st.sampled_from([0, 2]),
)
@settings(deadline=None, max_examples=40)
def test_splits_share_no_image_and_lose_none(
    total: int, val_size: int, train_size: int | None, kind: Any, workers: int
) -> None:
    source = _source(total)
    given_source = source if kind is None else _streamed(source, kind)
    left = total - val_size
    if (val_size and left < 1) or (train_size or 1) > left:
        with pytest.raises(RobustCliError):
            _prepare(given_source, val_size, train_size)
        return
    data = _prepare(given_source, val_size, train_size, workers)
    assert data.sizes == Sizes(train=train_size or left, val=val_size, test=6)
    train = _keys(torch.cat([x for x, _ in _batches(data, 7)]))
    val = _keys(data.evaluation("val")[0]) if val_size else []
    known = _keys(source.train.read(torch.arange(total)).float() / 255)
    assert len({*train, *val}) == len(train) + len(val) == data.sizes.train + val_size
    assert {*train, *val} <= set(known)
    assert torch.equal(data.evaluation("test")[0], source.test.read(torch.arange(6)).float() / 255)


def test_labels_follow_their_images() -> None:
    source = _source()
    keys = _keys(source.train.read(torch.arange(20)).float() / 255)
    label_of = dict(zip(keys, source.train.labels.tolist(), strict=True))
    for given_source in (source, _streamed(source)):
        data = _prepare(given_source, val_size=5, workers=2)
        for x, y in (*_batches(data, 4), data.evaluation("val"), data.evaluation("train")):
            assert [label_of[key] for key in _keys(x)] == y.tolist()
            assert y.dtype == torch.int64


def test_the_cut_is_fixed_and_train_size_takes_the_first_of_the_rest() -> None:
    whole, fewer = _prepare(_source(), val_size=5), _prepare(_source(), val_size=5, train_size=4)
    assert torch.equal(whole.evaluation("val")[0], fewer.evaluation("val")[0])
    assert torch.equal(whole.evaluation("train", 4)[0], fewer.evaluation("train")[0])
    # Not the first images as stored: folders are sorted by class.
    assert whole.evaluation("val")[1].tolist() != _source().train.labels[:5].tolist()


def test_shape_and_description_come_from_the_source() -> None:
    data = _prepare(replace(_source(), decode="JPEG"))
    shape = data.shape
    assert (shape.channels, shape.height, shape.width, shape.classes) == (3, 4, 5, 4)
    assert (data.mean, data.std, data.decode) == ((0.5,) * 3, (0.25,) * 3, "JPEG")
    assert list(data.classes) == ["a", "b", "c", "d"]


def test_the_digest_sees_pixels_and_labels_and_nothing_else() -> None:
    source = _source()
    digest = _prepare(source).digest
    assert len(digest) == 64
    assert _prepare(source, val_size=5, train_size=3).digest == digest
    assert _prepare(_streamed(source)).digest == digest
    for part in ("train", "test"):
        split: Any = getattr(source, part)
        pixel, label = split.images.clone(), split.labels.clone()
        pixel[-1, -1, -1, -1] += 1
        label[-1] = (label[-1] + 1) % 4
        for changed in (TensorSplit(pixel, split.labels), TensorSplit(split.images, label)):
            changes: dict[str, Any] = {part: changed}
            assert _prepare(replace(source, **changes)).digest != digest
    assert _prepare(_streamed(source, Named)).digest != digest


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 6, 20, 32])
def test_batches_are_as_many_as_announced(size: int, drop_last: bool) -> None:
    data = _prepare(_source())
    if drop_last and size > 20:
        with pytest.raises(RobustCliError, match="32 is more than the 20 train images"):
            data.steps_per_epoch(size, drop_last)
        return
    batches = _batches(data, size, drop_last=drop_last)
    assert len(batches) == data.steps_per_epoch(size, drop_last)
    assert all(len(x) == size for x, _ in batches[: -1 if not drop_last else None])


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("kind", [None, Streamed])
def test_skipping_continues_where_the_noise_was_left(kind: Any, workers: int) -> None:
    data = _prepare(_source() if kind is None else _streamed(_source(), kind), workers=workers)
    order, whole, states = _order(data), [], []
    rng = _noise(5)
    for x, labels in data.train_batches(order, 3, drop_last=False, augment=ALL, rng=rng):
        whole.append((x, labels.loss))
        states.append(rng.generator.get_state())
    for skip in range(1, len(whole) + 1):
        resumed = _noise()
        resumed.generator.set_state(states[skip - 1])
        tail = list(data.train_batches(order, 3, drop_last=False, augment=ALL, rng=resumed, skip=skip))
        assert len(tail) == len(whole) - skip
        for (x, labels), (x_whole, y_whole) in zip(tail, whole[skip:], strict=True):
            assert torch.equal(x, x_whole)
            assert torch.equal(labels.loss, y_whole)


def test_streamed_batches_equal_those_from_memory_with_any_number_of_workers() -> None:
    expected = _batches(_prepare(_source()), 3, augment=ALL)
    for workers in (0, 1, 4):
        found = _batches(_prepare(_streamed(_source()), workers=workers), 3, augment=ALL)
        for one, two in zip(expected, found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_augmentation_changes_train_batches_only() -> None:
    data = _prepare(_source())
    assert not torch.equal(_batches(data, 20, augment=ALL)[0][0], _batches(data, 20)[0][0])
    clean = torch.cat(list(data.clean_batches(6)))
    assert torch.equal(clean, data.evaluation("train")[0])


def test_orders_follow_their_generator() -> None:
    data = _prepare(_source())
    assert torch.equal(_order(data, 1), _order(data, 1))
    assert not torch.equal(_order(data, 1), _order(data, 2))
    assert sorted(_order(data).tolist()) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_keeps_its_message(workers: int) -> None:
    source = _source()
    data = _prepare(replace(source, train=Named(_split(20, 1), broken=3)), workers=workers)
    with pytest.raises(RobustCliError, match=r"^image 3 cannot be decoded$"):
        _batches(data, 4)


def test_a_loop_that_stops_early_leaves_no_threads() -> None:
    data = _prepare(_streamed(_source()), workers=2)
    batches = data.train_batches(_order(data), 2, drop_last=False, augment=PLAIN, rng=_noise())
    next(iter(batches))
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_more_images_than_there_are_is_an_error() -> None:
    data = _prepare(_source())
    assert len(data.evaluation("test", 6)[0]) == 6
    with pytest.raises(RobustCliError, match="7 test images requested; there are only 6"):
        data.evaluation("test", 7)
    with pytest.raises(RobustCliError, match=r"no val images; set data\.val_size"):
        data.evaluation("val")
    with pytest.raises(RobustCliError, match=r"data\.val_size: 20 of 20 .*at most 19"):
        _prepare(_source(), val_size=20)
    with pytest.raises(RobustCliError, match=r"data\.train_size: 16 is more than the 15 .* after 5 for validation"):
        _prepare(_source(), val_size=5, train_size=16)


def test_without_train_images_only_evaluation_works() -> None:
    data = _prepare(_source(train=0))
    assert data.sizes == Sizes(train=0, val=0, test=6)
    assert data.shape.height == 4
    assert len(data.evaluation("test")[0]) == 6
    attempts: list[Any] = [
        lambda: data.steps_per_epoch(4, False),
        lambda: _order(data),
        lambda: next(data.clean_batches(4)),
        lambda: data.evaluation("train"),
    ]
    for attempt in attempts:
        with pytest.raises(RobustCliError, match="is for evaluation only"):
            attempt()
    with pytest.raises(RobustCliError, match=r"data\.val_size: 5 of 0"):
        _prepare(_source(train=0), val_size=5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_pixels_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _batches(_prepare(_source(), val_size=2), 4)
    device = torch.device("cuda")
    for share in (0.25, 0.0):
        monkeypatch.setattr("robustcli.data.stores.GPU_SHARE", share)
        for source in (_source(), _streamed(_source())):
            data = prepare(source, val_size=2, train_size=None, device=device, workers=2)
            rng = StreamNoise(torch.Generator("cuda").manual_seed(0))
            found = data.train_batches(_order(data), 4, drop_last=False, augment=PLAIN, rng=rng)
            for one, (x, labels) in zip(expected, found, strict=True):
                two = (x, labels.loss)
                assert all(torch.equal(a, b.cpu()) for a, b in zip(one, two, strict=True))
                assert all(tensor.is_cuda for tensor in two)
