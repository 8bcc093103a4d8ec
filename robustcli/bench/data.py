"""`robust bench data`: cost of loading and augmenting a training image."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import transforms

from robustcli.bench.decoding import bench_decoding
from robustcli.bench.results.data import DataBench, DataRow, DataStep
from robustcli.bench.variants import SHAPE, Request, Variants, choose
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.splits import Data, prepare
from robustcli.measuring.machine import circumstances
from robustcli.measuring.timing import AGAIN, OURS, Stopwatch, Timed, Timings, measure
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.runtime.device import choose_device
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

PIL = "torchvision, PIL"
AUGMENT = Augment(crop=4, flip=True)
# Number of images in a sample.
_IMAGES = 2048


def bench_data(batch_size: int, rounds: int, device_name: str) -> DataBench:
    """Time cropping and flipping of images in memory, torchvision's transforms of PIL images, and decoding of files.

    The share refers to a PGD-10 step of a PreActResNet-18 with width 16, the cheapest realistic step.
    """
    device = choose_device(device_name)
    keep_freed_memory()
    stored, data = _random_data(device)
    request = Request(batch_size=batch_size, device=device_name, architecture="preact_resnet18")
    architecture, defenses = choose(request)
    watch = Stopwatch(device)
    epochs = {
        OURS: _ours(data, batch_size, device),
        AGAIN: _ours(data, batch_size, device),
        PIL: _pil(stored, batch_size, device),
    }
    step = "step"
    # The step is first, because the first sample determines the number of repeats and the step is the longest.
    samples = {step: Timed(Variants(request, architecture).ours(defenses["pgd_at"]), watch)}
    samples |= {name: Timed(epoch, watch) for name, epoch in epochs.items()}
    timings = Timings(measure(samples, rounds))
    # Incomplete batches are left out.
    images = _IMAGES // batch_size * batch_size
    # An image's share of the step, which processes a batch.
    share = batch_size / images
    rows = [
        DataRow(
            name=name,
            seconds_per_image=timings.spread(name, images),
            share_of_step=timings.over(step, name) * share,
            ratio=timings.ratio(name),
            verdict=timings.verdict(name),
        )
        for name in epochs
    ]
    return DataBench(
        **vars(circumstances(device, ["torchvision"])),
        image=[*SHAPE.size],
        batch_size=batch_size,
        clock=watch.name,
        rounds=rounds,
        step=DataStep(
            name=f"pgd_at, {architecture.name} width {architecture.parameters['width']}",
            seconds_per_image=timings.spread(step, batch_size),
        ),
        rows=rows,
        decoding=bench_decoding(rounds),
    )


def _random_data(device: torch.device) -> tuple[Tensor, Data]:
    """Return random images as bytes, and as the data of a training."""
    generator = torch.Generator().manual_seed(0)
    size = (_IMAGES, *SHAPE.size)
    images = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    split = TensorSplit(images, torch.randint(SHAPE.classes, (_IMAGES,), generator=generator))
    source = Source(split, split, [str(name) for name in range(SHAPE.classes)], (0.5,) * 3, (0.25,) * 3)
    return images, prepare(source, val_size=0, train_size=None, device=device, workers=0)


def _ours(data: Data, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Return a function that reads an epoch as training does."""
    noise = StreamNoise.on(device)
    generator = torch.Generator()

    def epoch() -> None:
        generator.manual_seed(0)
        noise.reseed(0, "augment")
        order = data.epoch(generator, batch_size, True)
        for x, _ in data.train_batches(order, batch_size, drop_last=True, augment=AUGMENT, rng=noise):
            assert len(x) == batch_size

    return epoch


def _pil(images: Tensor, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Return a function that reads an epoch with the transforms of torchvision's examples, image by image."""
    to_image = transforms.ToPILImage()
    pictures = [to_image(image) for image in images]
    transform = transforms.Compose(
        [transforms.RandomCrop(SHAPE.height, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )

    def epoch() -> None:
        order = torch.randperm(len(pictures)).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            torch.stack([transform(pictures[number]) for number in order[start : start + batch_size]]).to(device)

    return epoch
