"""Stored result of `robust bench data`."""

from typing import Literal

from robustcli.bench.results.bases import Row, TimedBench
from robustcli.measuring.timing import Spread
from robustcli.store.models import Stored


class DataRow(Row):
    """One input pipeline; the share is that of an update."""

    seconds_per_image: Spread
    share_of_step: Spread


class DataStep(Stored):
    """The update that input pipelines are compared with."""

    name: str
    seconds_per_image: Spread


class DecodingRow(Stored):
    """One loader of image files."""

    name: str
    processors: int
    images_per_second: Spread
    processor_ms_per_image: Spread


class Decoding(Stored):
    """Decoding of large image files.

    Args:
        file: width and height of the files.
        size: side of the crops.
        files: number of files.
        per_processor: our images per second of processor time as a multiple of the other loader's, by processors.
        scaling: throughput of our loader on all processors over that of as many loaders at once, each on its own.
        scaling_quietest: the same, of the fastest rounds.
        processor_scaling: our images per second of processor time on all processors over that on one.
        lock_ms_per_image: processor time under the interpreter lock.
    """

    file: list[int]
    size: int
    files: int
    rows: list[DecodingRow]
    per_processor: dict[str, Spread]
    scaling: Spread
    scaling_quietest: float
    processor_scaling: Spread
    lock_ms_per_image: Spread


class DataBench(TimedBench):
    """Result of `robust bench data`; files of version 0.1 have no decoding."""

    block = "data speed"

    bench: Literal["data"] = "data"
    image: list[int]
    batch_size: int
    step: DataStep
    rows: list[DataRow]
    decoding: Decoding | None = None
