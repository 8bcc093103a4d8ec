"""The images of a spec, or random ones of their shape where they are not there."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from robustcli.architectures import ImageShape
from robustcli.data import Data, prepare
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.loading import load_data
from robustcli.errors import RobustCliError
from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import DataOptions
from robustcli.specs.sizes import TRAIN_IMAGES
from robustcli.specs.spec import ExperimentSpec


@dataclass(frozen=True)
class _Known:
    """A published data set: shape of an image, and images to test."""

    shape: ImageShape
    test: int


_KNOWN = {
    "mnist": _Known(ImageShape(1, 28, 28, 10), 10_000),
    "fashion_mnist": _Known(ImageShape(1, 28, 28, 10), 10_000),
    "cifar10": _Known(ImageShape(3, 32, 32, 10), 10_000),
    "cifar100": _Known(ImageShape(3, 32, 32, 100), 10_000),
    "svhn": _Known(ImageShape(3, 32, 32, 10), 26_032),
}


def images_of(spec: ExperimentSpec, device: torch.device) -> tuple[Data, str | None]:
    """The images that training would read, and a line that says so where they are random ones instead.

    Nothing is fetched. What a pass costs does not depend on what an image shows.

    Raises:
        RobustCliError: the images cannot be read, and nobody knows their shape.
    """
    chosen = _without_download(spec.data)
    try:
        return load_data(chosen, device, to_train=True), None
    except RobustCliError as error:
        known = _KNOWN.get(chosen.name)
        if known is None:
            raise
        reason = str(error).partition(";")[0]
        options: DataOptions = chosen.options
        data = prepare(
            _random(known, TRAIN_IMAGES[chosen.name]),
            val_size=options.val_size,
            train_size=options.train_size,
            device=device,
            workers=options.workers,
        )
        return data, f"random images of {known.shape.words}, as many as {chosen.name} has: {reason}"


def _without_download(chosen: MemberSpec) -> MemberSpec:
    parameters: dict[str, Any] = dict(chosen.parameters)
    if "download" in parameters:
        parameters["download"] = False
    return replace(chosen, parameters=parameters)


def _random(known: _Known, train: int) -> Source:
    generator = torch.Generator().manual_seed(0)
    shape = known.shape

    def split(count: int) -> TensorSplit:
        size = (count, shape.channels, shape.height, shape.width)
        images = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        return TensorSplit(images, torch.randint(shape.classes, (count,), generator=generator))

    return Source(
        train=split(train),
        test=split(known.test),
        classes=[str(number) for number in range(shape.classes)],
        mean=(0.5,) * shape.channels,
        std=(0.25,) * shape.channels,
    )
