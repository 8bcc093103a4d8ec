"""Every storage of images gives a simulated GPU the same pixels as a CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from simulated_gpu import CUDA, simulated_gpu
from torch import Tensor

from robustcli.data.datasets import Source
from robustcli.data.datasets.image_folder import image_folder
from robustcli.data.datasets.packed import packed
from robustcli.data.packing import pack
from robustcli.data.splits import Data, prepare
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

CPU = torch.device("cpu")
PLAIN = Augment(resized_crop=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for part in ("train", "test"):
        for name in "ab":
            (root / "files" / part / name).mkdir(parents=True)
            for number in range(5):
                image = Image.fromarray(random.randint(0, 256, (9, 12, 3)).astype(np.uint8))
                image.save(root / "files" / part / name / f"{number}.png")
    pack(str(root / "files"), root / "pixels", 8, shard_bytes=1000)
    return root


def source_of(folder: Path, kind: str) -> Source:
    if kind == "pixels":
        return packed(root=str(folder / "pixels"))
    settings = {"streamed": {"memory_mib": 0}, "cut": {"crop_from": "whole"}, "held": {}}[kind]
    return image_folder(root=str(folder / "files"), size=8, **settings)  # type: ignore[arg-type]


def seen(data: Data, device: torch.device, augment: Augment) -> list[Tensor]:
    """Images of an epoch, of an evaluation by slice, numbers and mask, and of a subset, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    order = data.epoch(generator, 4, False)
    chance = data.crop_chance(len(order), generator)
    noise = StreamNoise(torch.Generator(device)).reseed(0, "augment")
    batches = data.train_batches(order, 4, drop_last=False, augment=augment, rng=noise, crop_chance=chance)
    x, y = data.images("test")
    numbers = torch.tensor([3, 0, 3], device=device)
    found = [x for x, _ in batches]
    found += [x[2:5], x[numbers], x[y == 1], x.subset(numbers)[:2], data.evaluation("val")[0]]
    assert all(part.device == device for part in (*found, y))
    return [part.cpu() for part in found]


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("kind", ["held", "streamed", "cut", "pixels"])
def test_a_gpu_gets_the_pixels_of_the_cpu(folder: Path, kind: str, fits: bool) -> None:
    source = source_of(folder, kind)
    augment = PLAIN if kind == "cut" else Augment()
    expected = seen(prepare(source, val_size=2, train_size=None, device=CPU, workers=2), CPU, augment)
    with simulated_gpu(free=lambda: 2**30 if fits else 1000):
        data = prepare(source, val_size=2, train_size=None, device=CUDA, workers=2)
        found = seen(data, CUDA, augment)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, torch.as_tensor(other.numpy()))
