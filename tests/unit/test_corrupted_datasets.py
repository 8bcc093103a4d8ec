"""cifar10_c, cifar100_c and imagenet_c in the layout of the published files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data.datasets.corruptions import BENCHMARK
from robustcli.data.datasets.folder_layout import has_train_part
from robustcli.data.loading import load_data, load_test_data
from robustcli.data.splits import Data
from robustcli.errors import RobustCliError
from robustcli.models import download
from robustcli.models.named_data import named_data
from robustcli.store.provenance import Sizes

COUNT = 12
KINDS = ("fog", "gaussian_noise", "frost")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Files like the published ones, with 12 images instead of 10,000, which a pixel identifies."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(np.arange(COUNT) % 10, 5).astype(np.uint8))
    for number, kind in enumerate(KINDS):
        images = np.zeros((5 * COUNT, 32, 32, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = np.tile(np.arange(COUNT), 5)
        images[:, 0, 1, 0] = np.repeat(np.arange(1, 6), COUNT)
        images[:, 0, 0, 1] = number
        np.save(folder / f"{kind}.npy", images)
    return tmp_path


def read(root: Path, **settings: object) -> Data:
    return load_test_data(named_data({"name": "cifar10_c", "root": str(root), **settings}), torch.device("cpu"))


def marks(data: Data) -> list[tuple[int, int, int]]:
    """Number, severity and kind of every image, read from its pixels."""
    x, y = data.evaluation("test")
    found = [tuple(round(255 * float(image[c, 0, j])) for c, j in ((0, 0), (0, 1), (1, 0))) for image in x]
    assert [image % 10 for image, _, _ in found] == y.tolist()
    return found  # type: ignore[return-value]


def test_one_kind_and_severity_keep_the_order_of_the_test_set(cifar: Path) -> None:
    data = read(cifar, kinds=["gaussian_noise"], severities=[3])
    assert marks(data) == [(image, 3, 1) for image in range(COUNT)]
    assert (data.sizes, data.shape.classes) == (Sizes(train=0, val=0, test=COUNT), 10)


def test_several_come_in_a_fixed_random_order(cifar: Path) -> None:
    chosen = {"kinds": list(KINDS), "severities": [1, 5]}
    found = marks(read(cifar, **chosen))
    everything = {(image, severity, kind) for image in range(COUNT) for severity in (1, 5) for kind in range(3)}
    assert len(found) == len(everything)
    assert set(found) == everything
    assert len({(severity, kind) for _, severity, kind in found[:20]}) == 6
    assert marks(read(cifar, **chosen)) == found


def test_the_folder_itself_may_be_named_and_severities_are_all_by_default(cifar: Path) -> None:
    found = marks(read(cifar / "CIFAR-10-C", kinds=["fog"]))
    assert len(found) == 5 * COUNT
    assert {severity for _, severity, _ in found} == {1, 2, 3, 4, 5}


def test_digests_tell_kinds_apart(cifar: Path) -> None:
    one, other = (read(cifar, kinds=[kind], severities=[1]) for kind in KINDS[:2])
    again = read(cifar, kinds=["fog"], severities=[1])
    assert one.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "CIFAR-10-C is not in .*shot_noise"),
        ({"kinds": ["fogg"]}, "did you mean 'fog'"),
        ({"kinds": ["fog"], "severities": [0]}, "severities"),
        ({"kinds": ["fog"], "severities": [6]}, "expected 1 to 5"),
    ],
)
def test_what_is_missing_or_wrong_is_named(cifar: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        read(cifar, **settings)


def test_files_of_another_shape_are_refused(cifar: Path) -> None:
    np.save(cifar / "CIFAR-10-C" / "fog.npy", np.zeros((7, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(RobustCliError, match=r"fog\.npy: found uint8 of shape \(7, 32, 32, 3\); expected"):
        read(cifar, kinds=["fog"])
    (cifar / "CIFAR-10-C" / "fog.npy").write_bytes(b"<html>")
    with pytest.raises(RobustCliError, match=r"fog\.npy: not a NumPy array"):
        read(cifar, kinds=["fog"])


def test_the_benchmark_has_fifteen_kinds() -> None:
    assert len(BENCHMARK) == len(set(BENCHMARK)) == 15


def test_there_is_nothing_to_train_on(cifar: Path) -> None:
    chosen = named_data({"name": "cifar10_c", "root": str(cifar), "kinds": ["fog"]})
    data = load_data(chosen, torch.device("cpu"), to_train=True)
    with pytest.raises(RobustCliError, match="this data set is for evaluation only"):
        data.steps_per_epoch(8, False)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for kind in ("fog", "snow"):
        for severity in (1, 2):
            for label, name in enumerate(("n01", "n02")):
                folder = tmp_path / kind / str(severity) / name
                folder.mkdir(parents=True)
                for number in range(3):
                    shade = 100 * label + 10 * severity + number
                    Image.new("RGB", (8, 8), (shade, shade, shade)).save(folder / f"{number}.png")
    return tmp_path


def test_imagenet_c_is_read_from_its_folders(imagenet: Path) -> None:
    chosen = {"name": "imagenet_c", "root": str(imagenet), "kinds": ["fog", "snow"], "severities": [1, 2], "size": 8}
    data = load_test_data(named_data(chosen), torch.device("cpu"))
    x, y = data.evaluation("test")
    assert (x.shape, list(data.classes)) == ((24, 3, 8, 8), ["n01", "n02"])
    shades = [round(255 * float(image[0, 0, 0])) for image in x]
    assert [int(shade >= 100) for shade in shades] == y.tolist()
    assert sorted(set(shades)) == [10, 11, 12, 20, 21, 22, 110, 111, 112, 120, 121, 122]
    assert shades != sorted(shades)
    few = load_test_data(named_data({**chosen, "kinds": ["snow"], "severities": [2]}), torch.device("cpu"))
    assert few.sizes.test == 6


def test_a_missing_kind_or_class_of_imagenet_c_is_named(imagenet: Path) -> None:
    chosen = {"name": "imagenet_c", "root": str(imagenet), "kinds": ["fog"], "size": 8}
    with pytest.raises(RobustCliError, match=r"has no folder fog/3; 3 of 5 are missing"):
        load_test_data(named_data(chosen), torch.device("cpu"))
    (imagenet / "fog" / "2" / "n03").mkdir()
    with pytest.raises(RobustCliError, match="other classes than fog/1: only in fog/2: n03"):
        load_test_data(named_data({**chosen, "severities": [1, 2]}), torch.device("cpu"))


@pytest.mark.parametrize("name", ["cifar10_c", "image_folder", "imagenet_c"])
def test_a_user_without_a_home_folder_gets_an_ordinary_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that run with the number of an unknown user."""

    def unknown(_number: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(RobustCliError, match=r"data\.root: .*~/images"):
        load_test_data(
            named_data({"name": name, "root": "~/images", **({} if name == "cifar10_c" else {"size": 8})}),
            torch.device("cpu"),
        )
    monkeypatch.delenv("ROBUST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(
        RobustCliError, match=r"~/\.cache/robustcli: there is no home folder; set HOME, or ROBUST_CACHE"
    ):
        download.folder()
    assert not has_train_part("~/images")
