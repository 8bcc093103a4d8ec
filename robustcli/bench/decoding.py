"""Throughput of decoding large JPEG files, compared with torchvision's ImageFolder and DataLoader."""

import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from robustcli.bench.results.data import Decoding, DecodingRow
from robustcli.bench.worker import Worker, messages
from robustcli.data.datasets.encoded import usable_processors
from robustcli.data.datasets.image_folder import image_folder
from robustcli.data.splits import prepare
from robustcli.measuring.timing import OURS, Spread, alternating, speed
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

LOADER = "torchvision, DataLoader"
# Width and height of the files, side of the crops, and the smallest share of their area.
_FILE, _SIZE, _SMALLEST = (500, 375), 224, 0.08
_FILES, _PASSES = 200, 5
_BATCH = 64
# Message to a loader.
_EPOCH = "epoch"


@dataclass(frozen=True)
class _Seconds:
    """Seconds of an epoch by the clock, of processor time, and of processor time under the interpreter lock."""

    wall: float
    cpu: float
    lock: float

    def __sub__(self, before: "_Seconds") -> "_Seconds":
        return _Seconds(self.wall - before.wall, self.cpu - before.cpu, self.lock - before.lock)


def bench_decoding(rounds: int, files: int = _FILES) -> Decoding:
    """Time random resized crops of JPEG files on one processor and on all, in processes that take turns.

    Processor time counts all threads and processes of a loader, so other load on the machine matters little. How well
    our loader uses several processors is measured against as many loaders at once, each pinned to one processor.
    That comparison needs an idle machine, since threads that may run anywhere lose more to other load, above all while
    one of them holds the interpreter lock; the quietest rounds come nearest. Two more numbers depend little on load:
    whether an image costs more processor time where several threads decode, and how much of this time is spent under
    the interpreter lock, which only one thread of a process can hold.
    """
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(usable_processors())]
    counts = sorted({1, len(processors)})
    found: dict[tuple[str, int], list[_Seconds]] = {(name, count): [] for name in (OURS, LOADER) for count in counts}
    separate: list[float] = []
    with TemporaryDirectory() as folder, ExitStack() as stack:
        _write_files(Path(folder), files)

        loaders = {
            (name, count): stack.enter_context(Worker[_Seconds](_serve, name, folder, processors[:count]))
            for name, count in found
        }
        apart = [stack.enter_context(Worker[_Seconds](_serve, OURS, folder, [processor])) for processor in processors]
        for each in (*loaders.values(), *apart):
            each.ask(_EPOCH)
        for order in alternating(loaders, rounds):
            for key in order:
                found[key].append(loaders[key].ask(_EPOCH))
            separate.append(_at_once(apart))
    return _decoding(found, separate, files)


def _decoding(found: Mapping[tuple[str, int], Sequence[_Seconds]], separate: Sequence[float], files: int) -> Decoding:
    """Return the result of a measurement.

    Args:
        found: seconds of every round by name and number of processors.
        separate: seconds of every round of loaders that run at once, each on its own processor.
    """
    images = files * _PASSES
    wall = {key: [each.wall for each in rounds] for key, rounds in found.items()}
    cpu = {key: [each.cpu for each in rounds] for key, rounds in found.items()}
    one, most = min(count for _, count in found), max(count for _, count in found)
    return Decoding(
        file=[*_FILE],
        size=_SIZE,
        files=files,
        rows=[
            DecodingRow(
                name=name,
                processors=count,
                images_per_second=Spread.of([images / seconds for seconds in wall[name, count]]),
                processor_ms_per_image=Spread.of(cpu[name, count]) * (1000 / images),
            )
            for name, count in found
        ],
        per_processor={str(count): speed(cpu[OURS, count], cpu[LOADER, count]) for count in (one, most)},
        scaling=speed(wall[OURS, most], separate),
        scaling_quietest=min(separate) / min(wall[OURS, most]),
        processor_scaling=speed(cpu[OURS, most], cpu[OURS, one]),
        lock_ms_per_image=Spread.of([each.lock for each in found[OURS, one]]) * (1000 / images),
    )


def _at_once(loaders: Sequence[Worker[_Seconds]]) -> float:
    """Seconds in which loaders that run at once read as many images as one epoch has."""
    for loader in loaders:
        loader.send(_EPOCH)
    return 1 / sum(1 / loader.receive().wall for loader in loaders)


def _write_files(folder: Path, count: int) -> None:
    """Write JPEG files of about 65 kB: smooth pictures with noise."""
    random = np.random.RandomState(0)
    width, height = _FILE
    for part in ("train", "test"):
        (folder / part / "one").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.randint(0, 256, (24, 32, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize(_FILE, Image.Resampling.BICUBIC)).astype(np.int64)
        noisy = (smooth + random.randint(-12, 13, (height, width, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "train" / "one" / f"{number}.jpg", quality=90)
    Image.new("RGB", _FILE).save(folder / "test" / "one" / "0.jpg")


def _ours(folder: str) -> Callable[[], int]:
    source = image_folder(root=folder, size=_SIZE, crop_from="whole")
    data = prepare(source, val_size=0, train_size=None, device=torch.device("cpu"), workers=2)
    generator, noise = torch.Generator().manual_seed(0), StreamNoise.on(torch.device("cpu"))
    augment = Augment(resized_crop=_SMALLEST, flip=True)

    def drawn() -> tuple[torch.Tensor, torch.Tensor | None]:
        order = torch.cat([data.order(generator) for _ in range(_PASSES)])
        return order, data.crop_chance(len(order), generator)

    def epoch() -> int:
        order, chance = drawn()
        batches = data.train_batches(order, _BATCH, drop_last=False, augment=augment, rng=noise, crop_chance=chance)
        return sum(len(x) for x, _ in batches)

    return epoch


def _torchvision(folder: str, workers: int) -> Callable[[], int]:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(_SIZE, scale=(_SMALLEST, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    images = datasets.ImageFolder(f"{folder}/train", transform)

    def epoch() -> int:
        order = [number for _ in range(_PASSES) for number in torch.randperm(len(images)).tolist()]
        return sum(len(x) for x, _ in DataLoader(images, _BATCH, sampler=order, num_workers=workers))

    return epoch


class _UnderLock:
    """Processor time of the steps of decoding that hold the interpreter lock: reading headers, and copying pixels out.

    Pillow decompresses and resamples without the lock.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        for owner, name in ((Image, "open"), (np, "asarray")):
            setattr(owner, name, partial(self._timed, getattr(owner, name)))

    def _timed(self, call: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*arguments, **settings)
        finally:
            self.seconds += time.thread_time() - start


def _now(lock: _UnderLock | None) -> _Seconds:
    """Return the clocks; processor time includes that of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_time = time.process_time() + children.ru_utime + children.ru_stime
    return _Seconds(time.perf_counter(), processor_time, lock.seconds if lock else 0.0)


def _serve(pipe: Connection, name: str, folder: str, processors: Sequence[int]) -> None:
    """Answer each message with the seconds of an epoch of a loader on some of the processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)
    torch.set_num_threads(1)
    # As training does.
    keep_freed_memory()
    workers = len(processors)
    # Only on one processor, where no other thread adds to the sum.
    lock = _UnderLock() if workers == 1 else None
    epoch = _ours(folder) if name == OURS else _torchvision(folder, workers)
    for _ in messages(pipe):
        before = _now(lock)
        assert epoch()
        pipe.send(_now(lock) - before)
