"""Throughput of decoding large JPEG files, compared with torchvision's ImageFolder and DataLoader."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image

from robustcli.bench.results import DataBench, typed
from robustcli.data.datasets.encoded import usable_processors
from robustcli.data.datasets.image_folder import image_folder
from robustcli.data.splits import prepare
from robustcli.measuring.timing import OURS, Spread, speed
from robustcli.runtime.allocator import keep_freed_memory
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

LOADER = "torchvision, DataLoader"
# Width and height of the files, side of the crops, and the smallest share of their area.
_FILE, _SIZE, _SMALLEST = (500, 375), 224, 0.08
_FILES, _PASSES = 200, 5
_BATCH = 64


def bench_decoding(rounds: int, files: int = _FILES) -> dict[str, Any]:
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
    seconds: dict[tuple[str, int], list[dict[str, float]]] = {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        _write_files(Path(folder), files)
        loaders = {
            (name, count): stack.enter_context(_Loader(name, folder, processors[:count]))
            for name in (OURS, LOADER)
            for count in counts
        }
        apart = [stack.enter_context(_Loader(OURS, folder, [processor])) for processor in processors]
        for loader in (*loaders.values(), *apart):
            loader.epoch()
        alone: list[float] = []
        order = list(loaders)
        for _ in range(rounds):
            for key in order:
                seconds.setdefault(key, []).append(loaders[key].epoch())
            alone.append(_at_once(apart))
            order.reverse()
    images = files * _PASSES
    rows = [
        {
            "name": name,
            "processors": count,
            "images_per_second": asdict(Spread.of([images / each["wall"] for each in found])),
            "processor_ms_per_image": asdict(Spread.of([1000 * each["cpu"] / images for each in found])),
        }
        for (name, count), found in seconds.items()
    ]
    return {
        "file": [*_FILE],
        "size": _SIZE,
        "files": files,
        "rows": rows,
        # Our throughput per second of processor time as a multiple of the loader's.
        "per_processor": {
            str(count): asdict(speed(_times(seconds[OURS, count], "cpu"), _times(seconds[LOADER, count], "cpu")))
            for count in counts
        },
        # Throughput of our loader on all processors over that of as many loaders at once, each on its own.
        "scaling": asdict(speed(_times(seconds[OURS, counts[-1]], "wall"), alone)),
        "scaling_quietest": min(alone) / min(_times(seconds[OURS, counts[-1]], "wall")),
        # Images per processor second on all processors over that on one.
        "processor_scaling": asdict(
            speed(_times(seconds[OURS, counts[-1]], "cpu"), _times(seconds[OURS, counts[0]], "cpu"))
        ),
        "lock_ms_per_image": asdict(Spread.of([1000 * each["lock"] / images for each in seconds[OURS, counts[0]]])),
    }


def describe_decoding(results: Sequence[Mapping[str, Any]]) -> str:
    """Return sentences about the decoding part of results of `robust bench data`; files of version 0.1 have none."""
    lines = []
    for found in (bench.decoding for bench in typed(DataBench, results) if bench.decoding is not None):
        width, height = found.file
        lines.append(f"Random resized crops of {found.size} px from {width} x {height} JPEG:")
        for row in found.rows:
            rate, cost = row.images_per_second, row.processor_ms_per_image
            processors = f"{row.processors} processor" + "s" * (row.processors > 1)
            lines.append(
                f"  {row.name}, {processors}: {rate.median:.0f} images/s ({rate.low:.0f}-"
                f"{rate.high:.0f}), {cost.median:.2f} ms of processor time each ({cost.low:.2f}-{cost.high:.2f})"
            )
        for count, ratio in found.per_processor.items():
            lines.append(
                f"  per processor, on {count}: {ratio} times the images of {LOADER} in the same processor time"
            )
        lines.append(f"  {OURS}, all processors: {found.scaling} times what loaders on one each give at once")
        if (lock := found.lock_ms_per_image) is not None:
            lines[-1] += f", {found.scaling_quietest:.2f} in the quietest rounds"
            lines.append(
                f"  images per processor second on all: {found.processor_scaling} times those on one; "
                f"{lock.median:.2f} ms ({lock.low:.2f}-{lock.high:.2f}) of an image are spent under the "
                f"interpreter lock, so one process decodes at most {1000 / lock.median:,.0f} images/s"
            )
    return "\n".join(lines)


def _times(found: Sequence[Mapping[str, float]], clock: str) -> list[float]:
    return [each[clock] for each in found]


def _at_once(loaders: Sequence["_Loader"]) -> float:
    """Seconds in which loaders that run at once read as many images as one epoch has."""
    for loader in loaders:
        loader.begin()
    return 1 / sum(1 / loader.end()["wall"] for loader in loaders)


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


class _Loader:
    """A loader in a process that may use some of the processors, and waits while others are measured."""

    def __init__(self, name: str, folder: str, processors: Sequence[int]) -> None:
        settings = {"name": name, "folder": folder, "processors": list(processors)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def epoch(self) -> dict[str, float]:
        """Return the seconds of an epoch by clock."""
        self.begin()
        return self.end()

    def begin(self) -> None:
        """Begin an epoch."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, float]:
        """Return the seconds of the epoch that was begun, by clock."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "a process that measures decoding ended; its output is above"
        found: dict[str, float] = json.loads(answer)
        return found

    def __enter__(self) -> "_Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its input, so it ends


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


def _processor_time() -> float:
    """Processor time of this process and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _main() -> None:
    """Answer each line of input with the seconds of an epoch."""
    settings = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, settings["processors"])
    torch.set_num_threads(1)
    # As training does.
    keep_freed_memory()
    workers = len(settings["processors"])
    # Only on one processor, where no other thread adds to the sum.
    lock = _UnderLock() if workers == 1 else None
    epoch = _ours(settings["folder"]) if settings["name"] == OURS else _torchvision(settings["folder"], workers)
    for _ in sys.stdin:
        wall, cpu, locked = time.perf_counter(), _processor_time(), lock.seconds if lock else 0.0
        images = epoch()
        assert images
        found = {"wall": time.perf_counter() - wall, "cpu": _processor_time() - cpu}
        print(json.dumps({**found, "lock": (lock.seconds if lock else 0.0) - locked}), flush=True)


if __name__ == "__main__":
    _main()
