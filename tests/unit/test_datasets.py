"""Sources of images: what they read, and their error messages."""

import gzip
import hashlib
import pickle
import struct
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from robustcli.data.datasets import DATASETS, Source, TensorSplit, encoded
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.digits import digits
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.data.datasets.image_folder import image_folder
from robustcli.data.datasets.mnist import fashion_mnist, mnist
from robustcli.data.datasets.npz import npz
from robustcli.data.datasets.svhn import svhn
from robustcli.data.splits import prepare
from robustcli.errors import RobustCliError

RNG = np.random.default_rng(0)


cifar10, cifar100 = DATASETS.get("cifar10"), DATASETS.get("cifar100")


def _pixels(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def _held(split: Any) -> TensorSplit:
    assert isinstance(split, TensorSplit)
    return split


def test_the_registry_finds_every_source() -> None:
    expected = {
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "moving_digits",
        "image_folder",
        "packed",
        "npz",
    }
    assert expected <= set(DATASETS)


def test_the_fixed_order_never_changes() -> None:
    assert fixed_order(10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert fixed_order(0).shape == (0,)


def test_channel_statistics_agree_with_numpy() -> None:
    images = torch.from_numpy(_pixels(7, 2, 5, 4))
    for given in (images, images.float() / 255):
        mean, std = channel_statistics(given)
        numbers = images.double().numpy() / 255
        assert mean == pytest.approx(numbers.mean((0, 2, 3)))
        assert std == pytest.approx(numbers.std((0, 2, 3)))
    assert channel_statistics(torch.zeros(3, 1, 2, 2))[1] == (1.0,)


def test_digits_are_split_once_and_for_all() -> None:
    source = digits()
    train, test = _held(source.train), _held(source.test)
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert (train.images * 16).frac().abs().max() == 0
    assert train.images.max() == 1
    assert test.labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]
    known = load_digits()
    images = torch.from_numpy(known.images)[fixed_order(1797)][:, None].float() / 16
    assert torch.equal(torch.cat([test.images, train.images]), images)
    labels = torch.from_numpy(known.target)[fixed_order(1797)]
    assert torch.equal(torch.cat([test.labels, train.labels]), labels.long())
    rows = {image.numpy().tobytes() for image in train.images} & {image.numpy().tobytes() for image in test.images}
    assert not rows


# Published data sets, from tiny files of their formats.


def _write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def _write_mnist(folder: Path, images: int = 5, labels: int = 5) -> np.ndarray[Any, Any]:
    pixels = _pixels(images, 28, 28)
    for part in ("train", "t10k"):
        _write_idx(folder / f"{part}-images-idx3-ubyte", pixels)
        _write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(labels, dtype=np.uint8))
    return pixels


@pytest.mark.parametrize(("member", "folder"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_mnist_reads_the_published_format(member: Any, folder: str, tmp_path: Path) -> None:
    pixels = _write_mnist(tmp_path / folder / "raw")
    source: Source = member(root=str(tmp_path))
    assert np.array_equal(_held(source.train).images[:, 0].numpy(), pixels)
    assert source.test.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(source.classes) == 10


def test_mnist_files_that_are_cut_short_or_do_not_match_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    _write_mnist(raw, images=5, labels=4)
    with pytest.raises(RobustCliError, match="5 images have 4 labels"):
        mnist(root=str(tmp_path))
    images = raw / "train-images-idx3-ubyte"
    for broken in (images.read_bytes()[:100], b"not an idx file", b""):
        images.write_bytes(broken)
        with pytest.raises(RobustCliError, match=r"not the published ones.*data\.download=true"):
            mnist(root=str(tmp_path))


@pytest.mark.parametrize(
    ("member", "reader", "label_key"),
    [
        (cifar10, torchvision.datasets.CIFAR10, "labels"),
        (cifar100, torchvision.datasets.CIFAR100, "fine_labels"),
    ],
)
def test_cifar_reads_the_published_format(
    member: Any, reader: Any, label_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / reader.base_folder
    folder.mkdir()

    def write(name: str, content: Any) -> str:
        content = pickle.dumps(content)
        (folder / name).write_bytes(content)
        return hashlib.md5(content).hexdigest()

    pixels = _pixels(4, 3, 32, 32)
    for part in ("train_list", "test_list"):
        names = [name for name, _ in getattr(reader, part)]
        batch = {"data": pixels.reshape(4, -1), label_key: [0, 3, 2, 1]}
        monkeypatch.setattr(reader, part, [[name, write(name, batch)] for name in names])
    meta = dict(reader.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: ["a", "b", "c", "d"]})
    monkeypatch.setattr(reader, "meta", meta)
    source: Source = member(root=str(tmp_path))
    assert np.array_equal(_held(source.test).images.numpy(), pixels)
    assert source.test.labels.tolist() == [0, 3, 2, 1]
    assert len(source.train.labels) == 4 * len(reader.train_list)
    assert source.classes == ["a", "b", "c", "d"]
    (folder / reader.test_list[0][0]).write_bytes(b"changed")
    with pytest.raises(RobustCliError, match="not the published ones"):
        member(root=str(tmp_path))


def test_svhn_reads_the_published_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = _pixels(3, 3, 32, 32)
    files = {}
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        scipy.io.savemat(path, {"X": pixels.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9]], dtype=np.uint8)})
        files[part] = ["http://localhost/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", files)
    source = svhn(root=str(tmp_path))
    assert np.array_equal(_held(source.train).images.numpy(), pixels)
    assert source.train.labels.tolist() == [0, 1, 9]


@pytest.mark.parametrize("member", [mnist, fashion_mnist, cifar10, cifar100, svhn])
def test_missing_files_name_the_folder_and_both_ways_out(member: Any, tmp_path: Path) -> None:
    with pytest.raises(RobustCliError) as caught:
        member(root=str(tmp_path))
    for part in (str(tmp_path), "data.root", "data.download=true", "expected there"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("member", [mnist, fashion_mnist, cifar10, cifar100, svhn])
def test_a_download_that_fails_is_one_clear_error(member: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("offline")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(RobustCliError, match=r"could not be downloaded into .*offline") as caught:
        member(root=str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


# Image folders.


def _write_folder(
    root: Path,
    *,
    parts: tuple[str, ...] = ("train", "test"),
    classes: tuple[str, ...] = ("cat", "dog"),
    count: int = 6,
    size: tuple[int, int] = (8, 8),
    suffix: str = ".png",
) -> Path:
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_pixels(size[1], size[0], 3)).save(root / part / name / f"{number}{suffix}")
    return root


def test_a_folder_reads_the_same_from_memory_and_from_files(tmp_path: Path) -> None:
    root = str(_write_folder(tmp_path))
    held = image_folder(root=root, size=8)
    streamed = image_folder(root=root, size=8, memory_mib=0)
    assert held.train.in_memory
    assert not streamed.train.in_memory
    assert held.classes == streamed.classes == ["cat", "dog"]
    assert held.decode == ""
    index = torch.tensor([11, 0, 5, 5])
    for first, second in ((held.train, streamed.train), (held.test, streamed.test)):
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.read(index), second.read(index))
    # With fewer images than the sample size, the statistics use all images.
    assert held.mean == pytest.approx(streamed.mean)
    image = np.asarray(Image.open(tmp_path / "train" / "dog" / "5.png"))
    assert np.array_equal(held.train.read(torch.tensor([11]))[0].permute(1, 2, 0).numpy(), image)


def test_test_images_are_mixed_and_train_images_sorted(tmp_path: Path) -> None:
    source = image_folder(root=str(_write_folder(tmp_path)), size=8)
    assert source.train.labels.tolist() == [0] * 6 + [1] * 6
    assert sorted(source.test.labels.tolist()) == [0] * 6 + [1] * 6
    assert set(source.test.labels[:6].tolist()) == {0, 1}


def test_other_sizes_become_their_central_square(tmp_path: Path) -> None:
    root = _write_folder(tmp_path, size=(8, 8))
    wide = np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, 8:24] = 200
    Image.fromarray(wide).save(root / "train" / "cat" / "0.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(root / "train" / "cat" / "1.png")
    images = image_folder(root=str(root), size=8).train.read(torch.tensor([0, 1]))
    assert images.shape == (2, 3, 8, 8)
    # Smoothing mixes the outermost pixels with what lies beyond the square.
    assert (images[..., 1:-1, 1:-1] == 200).all()


def test_val_stands_for_test_and_other_modes_become_rgb(tmp_path: Path) -> None:
    root = _write_folder(tmp_path, parts=("train", "val"), suffix=".JPEG")
    gray = _pixels(8, 8)
    Image.fromarray(gray).save(root / "train" / "cat" / ".hidden.png")
    Image.fromarray(gray).save(root / "train" / "cat" / "-.png")
    source = image_folder(root=str(root), size=8)
    assert len(source.train.labels) == 13
    assert source.decode == "JPEG"
    assert np.array_equal(source.train.read(torch.tensor([0]))[0, 2].numpy(), gray)


def test_the_fingerprint_sees_names_and_sizes(tmp_path: Path) -> None:
    root = _write_folder(tmp_path)

    def fingerprint() -> bytes:
        train: Any = image_folder(root=str(root), size=8, memory_mib=0).train
        found: bytes = train.fingerprint()
        return found

    first = fingerprint()
    assert fingerprint() == first
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "x.png")
    assert fingerprint() != first


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match=r"has no folder train; expected train/<class>"):
        image_folder(root=str(tmp_path))
    root = _write_folder(tmp_path)
    (root / "train" / "bird").mkdir()
    (root / "test" / "fish").mkdir()
    with pytest.raises(RobustCliError, match=r"only in train: bird; only in test: fish"):
        image_folder(root=str(root))
    (root / "train" / "fish").mkdir()
    (root / "test" / "bird").mkdir()
    with pytest.raises(RobustCliError, match=r"train/bird: has no images"):
        image_folder(root=str(root))


@pytest.mark.parametrize("memory_mib", [0, 100])
def test_images_that_cannot_be_decoded_are_named(memory_mib: int, tmp_path: Path) -> None:
    root = _write_folder(tmp_path)
    bad = root / "train" / "dog" / "3.png"
    whole = bad.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        with pytest.raises(RobustCliError, match=r"dog/3\.png: cannot be decoded"):
            image_folder(root=str(root), size=8, memory_mib=memory_mib)
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(bad)
    with pytest.raises(RobustCliError, match=r"dog/3\.png: has more than 8 bits"):
        image_folder(root=str(root), size=8, memory_mib=memory_mib)
    bad.unlink()
    (root / "train" / "dog" / "notes.txt").touch()
    with pytest.raises(RobustCliError, match=r"notes\.txt: is not a supported image"):
        image_folder(root=str(root), size=8, memory_mib=memory_mib)


# Arrays.


def _arrays(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "x_train": _pixels(6, 4, 5, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": _pixels(3, 4, 5, 3),
        "y_test": np.array([2, 1, 0], dtype=np.uint8),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def _saved(path: Path, arrays: dict[str, Any]) -> str:
    np.savez(path / "images.npz", **arrays)
    return str(path / "images.npz")


def test_npz_reads_images_with_and_without_channels(tmp_path: Path) -> None:
    arrays = _arrays()
    source = npz(path=_saved(tmp_path, arrays))
    assert np.array_equal(_held(source.train).images.permute(0, 2, 3, 1).numpy(), arrays["x_train"])
    assert source.test.labels.tolist() == [2, 1, 0]
    assert source.classes == ["0", "1", "2"]
    assert source.mean == pytest.approx((arrays["x_train"] / 255).mean((0, 1, 2)))
    gray = npz(path=_saved(tmp_path, _arrays(x_train=_pixels(6, 4, 5), x_test=_pixels(3, 4, 5))))
    assert _held(gray.train).images.shape == (6, 1, 4, 5)


def test_npz_names_classes_missing_from_the_train_part(tmp_path: Path) -> None:
    changes = {"classes": np.array(["a", "b", "c", "d"]), "y_test": np.array([3, 0, 0])}
    assert npz(path=_saved(tmp_path, _arrays(**changes))).classes == ["a", "b", "c", "d"]


def test_npz_with_only_test_images_has_an_empty_train_part(tmp_path: Path) -> None:
    source = npz(path=_saved(tmp_path, _arrays(x_train=None, y_train=None)))
    assert _held(source.train).images.shape == (0, 3, 4, 5)
    assert len(source.test.labels) == 3
    assert (source.mean, source.std) == ((), ())
    assert not source.is_whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"does not have y_test \(it has x_train, y_train, x_test\)"),
        ({"y_train": None}, "does not have y_train"),
        (
            {"x_train": np.full((6, 4, 5, 3), 9.0)},
            r"x_train is float64 from 9 to 9; expected pixels in \[0, 1\]: divide",
        ),
        (
            {"x_train": np.full((6, 4, 5, 3), np.nan)},
            r"x_train is float64 from nan to nan; expected pixels in \[0, 1\]",
        ),
        ({"x_test": np.zeros((3, 4, 5, 3), dtype=np.int32)}, "x_test is int32; expected uint8"),
        ({"x_test": _pixels(3, 60)}, r"x_test has shape \(3, 60\)"),
        ({"x_test": _pixels(0, 4, 5, 3), "y_test": np.zeros(0, dtype=int)}, r"x_test has shape \(0, "),
        ({"x_test": _pixels(3, 3, 5, 5)}, "channels first"),
        ({"x_test": _pixels(3, 5, 5, 3)}, "x_train has images of 4 x 5 x 3 and x_test of 5 x 5 x 3"),
        ({"y_train": np.zeros(6)}, "y_train is float64; expected whole numbers"),
        ({"y_train": np.eye(6, dtype=int)}, r"y_train has shape \(6, 6\).*argmax"),
        ({"y_train": np.arange(5)}, "y_train has 5 labels for 6 images"),
        ({"y_test": np.array([0, -1, 0])}, "y_test has the label -1"),
        ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, "labels from 1 to 3 and no 0"),
        ({"y_test": np.array([0, 3, 0])}, "y_test has the label 3; expected 0 to 2"),
        ({"classes": np.array(["a", "b"])}, "y_train has the label 2; expected 0 to 1"),
        ({"classes": np.arange(3)}, "classes has shape .* expected one row of texts"),
        ({"x_test": np.array([None, None, None])}, "x_test cannot be read"),
    ],
)
def test_npz_names_the_wrong_array(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _saved(tmp_path, _arrays(**changes))
    with pytest.raises(RobustCliError, match=message) as caught:
        npz(path=path)
    assert path in str(caught.value)


def test_npz_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match="there is no file"):
        npz(path=str(tmp_path / "none.npz"))
    file = tmp_path / "other.npz"
    for content in (b"", b"text", gzip.compress(b"text"), b"PK\x03\x04 cut short"):
        file.write_bytes(content)
        with pytest.raises(RobustCliError, match=r"cannot be read|the file is (empty|a gzip archive|truncated|a text)"):
            npz(path=str(file))
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(RobustCliError, match="a single NumPy array"):
        npz(path=str(file))


# The test part alone


@pytest.mark.parametrize(
    "changes",
    [
        {"x_train": None, "y_train": None},
        {"x_train": _pixels(0, 4, 5, 3), "y_train": np.zeros(0, dtype=int)},
        {"x_train": _pixels(6, 9, 9, 3)},
        {"x_train": np.zeros((6, 4, 5, 3), dtype="float32") - 1},
        {"y_train": None},
        {"y_train": np.full(6, -7)},
        {"y_train": np.array(["a", "b"])},
    ],
)
def test_the_train_part_of_a_file_does_not_matter_to_an_evaluation(tmp_path: Path, changes: dict[str, Any]) -> None:
    x, y = _pixels(3, 4, 5, 3), np.array([2, 1, 0])
    source = npz("test", path=_saved(tmp_path, _arrays(**{**changes, "x_test": x, "y_test": y})))
    assert torch.equal(_held(source.test).images, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert source.test.labels.tolist() == [2, 1, 0]
    assert not source.classes_are_known


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_and_labels_in_a_column_are_read(tmp_path: Path, dtype: str) -> None:
    x = np.linspace(0, 1, 180).reshape(3, 4, 5, 3).astype(dtype)
    source = npz("test", path=_saved(tmp_path, _arrays(x_test=x, y_test=np.array([[0], [1], [0]]))))
    assert _held(source.test).images.dtype == torch.float32
    assert torch.equal(_held(source.test).images, torch.from_numpy(x.astype("float32")).permute(0, 3, 1, 2))
    assert source.test.labels.tolist() == [0, 1, 0]


def test_advice_to_load_code_is_not_passed_on(tmp_path: Path) -> None:
    path = _saved(tmp_path, _arrays(x_test=np.array([{}, 3], dtype=object)))
    with pytest.raises(RobustCliError, match="it holds Python objects") as caught:
        npz("test", path=path)
    assert "pickle" not in str(caught.value)


def _image(path: Path, level: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ("", "ab", ["a", "b"]),
        ("abc", "ac", ["a", "b", "c"]),
        ("ab", "abc", ["a", "b", "c"]),
    ],
)
def test_only_names_of_train_classes_matter_to_an_evaluation(
    tmp_path: Path, train: str, test: str, expected: list[str]
) -> None:
    for name in train:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "broken.png").write_text("not an image")
    for name in test:
        _image(tmp_path / "test" / name / "0.png", 10 * ord(name) % 256)
    source = image_folder("test", root=str(tmp_path), size=8)
    assert source.classes == expected
    levels = source.test.read(torch.arange(len(test)))[:, 0, 0, 0].tolist()
    assert levels == [10 * ord(expected[label]) % 256 for label in source.test.labels.tolist()]


def test_an_evaluation_decodes_only_the_images_it_evaluates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        _image(tmp_path / "test" / "ab"[number % 2] / f"{number}.png")
    decoded: list[str] = []
    usual = encoded.decode

    def counting(data: bytes, size: int, where: str, **settings: Any) -> Any:
        decoded.append(where)
        return usual(data, size, where, **settings)

    monkeypatch.setattr(encoded, "decode", counting)
    data = prepare(
        image_folder("test", root=str(tmp_path), size=8),
        val_size=0,
        train_size=None,
        device=torch.device("cpu"),
        workers=0,
    )
    data.evaluation("test", 5)
    assert len(set(decoded)) == 5


def test_what_file_managers_leave_is_passed_over(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            _image(tmp_path / part / name / "0.png")
            for litter in ("Thumbs.db", "desktop.ini", ".DS_Store"):
                (tmp_path / part / name / litter).write_text("x")
    assert len(image_folder(root=str(tmp_path), size=8).train.labels) == 2
    assert len(image_folder("test", root=str(tmp_path), size=8).test.labels) == 2


def test_names_that_only_look_different_in_unicode_are_one_class(tmp_path: Path) -> None:
    for part, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        _image(tmp_path / part / name / "0.png")
        _image(tmp_path / part / "tea" / "0.png")
    assert image_folder(root=str(tmp_path), size=8).classes == ["caf\u00e9", "tea"]
    assert image_folder("test", root=str(tmp_path), size=8).classes == ["caf\u00e9", "tea"]


def test_two_folders_of_one_part_that_only_look_different_are_refused(tmp_path: Path) -> None:
    """The images of one of them would be left out."""
    for part in ("train", "test"):
        for name in ("caf\u00e9", "cafe\u0301"):
            _image(tmp_path / part / name / "0.png")
    for read in ("all", "test"):
        with pytest.raises(RobustCliError, match=r"two folders named caf.*\\xe9'\); .*merge them"):
            image_folder(read, root=str(tmp_path), size=8)  # type: ignore[arg-type]


def test_rgb_of_16_bits_is_refused_as_gray_of_16_bits_is(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    folder = tmp_path / "test" / "a"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(png)
    (folder / "1.ppm").write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))
    source = image_folder("test", root=str(tmp_path), size=8)
    for number in range(2):
        with pytest.raises(RobustCliError, match="has more than 8 bits per channel"):
            source.test.read(torch.tensor([number]))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999, 8, 8, 1), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 1), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10, 8, 8, 1), }" + " " * 60_000,
        "(" * 5000,
        "[" * 9000 + "]" * 9000,
    ],
    ids=lambda header: header[-40:],
)
def test_npz_refuses_headers_that_claim_too_much(tmp_path: Path, header: str) -> None:
    line = header.encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + bytes(640)
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("x_test.npy", array)
    with pytest.raises(RobustCliError, match=r"x_test cannot be read") as caught:
        npz(path=str(tmp_path / "odd.npz"))
    assert len(str(caught.value)) < 800


def test_npz_refuses_equal_names_of_classes(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8, 1), dtype=np.uint8), np.array([0, 1, 0, 1])
    names = np.array(["a", "a"])
    np.savez(tmp_path / "twice.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=names)
    with pytest.raises(RobustCliError, match="classes has 'a' twice"):
        npz(path=str(tmp_path / "twice.npz"))


def test_a_path_whose_links_lead_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    with pytest.raises(RobustCliError, match="there is no file"):
        npz(path=str(tmp_path / "loop.npz"))
