"""The images of a spec, or random images of the same shape if they are missing."""

from dataclasses import replace
from typing import Any

import torch

from robustcli.architectures import ImageShape
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.loading import load_data
from robustcli.data.splits import Data, prepare
from robustcli.errors import RobustCliError
from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import DataOptions
from robustcli.specs.spec import ExperimentSpec


def images_of(spec: ExperimentSpec, device: torch.device) -> tuple[Data, str | None]:
    """Return the training images, and a note if they are replaced by random ones of the same shape.

    Nothing is downloaded. The cost of a pass does not depend on the contents of an image.

    Raises:
        RobustCliError: the images cannot be read, and the data set does not declare their shape and number.
    """
    chosen = _without_download(spec.data)
    try:
        return load_data(chosen, device, to_train=True), None
    except RobustCliError as error:
        member = chosen.member
        if not (member.image and member.classes and member.train_images and member.test_images):
            raise
        shape = ImageShape(*member.image, member.classes)
        reason = str(error).partition(";")[0]
        options: DataOptions = chosen.options
        data = prepare(
            _random(shape, member.train_images, member.test_images),
            val_size=options.val_size,
            train_size=options.train_size,
            device=device,
            workers=options.workers,
        )
        return data, f"random {shape.text} replace {chosen.name}: {reason}"


def _without_download(chosen: MemberSpec) -> MemberSpec:
    parameters: dict[str, Any] = dict(chosen.parameters)
    if "download" in parameters:
        parameters["download"] = False
    return replace(chosen, parameters=parameters)


def _random(shape: ImageShape, train: int, test: int) -> Source:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> TensorSplit:
        size = (count, shape.channels, shape.height, shape.width)
        images = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        return TensorSplit(images, torch.randint(shape.classes, (count,), generator=generator))

    return Source(
        train=split(train),
        test=split(test),
        classes=[str(number) for number in range(shape.classes)],
        mean=(0.5,) * shape.channels,
        std=(0.25,) * shape.channels,
    )
