"""Contract of every data set."""

from collections.abc import Callable

import torch

from robustcli.data.datasets import Source, Split


def is_a_source(load: Callable[[], Source]) -> None:
    """Both parts contain labeled images of one shape and range; loading again gives the same."""
    source, again = load(), load()
    shapes = {_check_split(part, len(source.classes)) for part in (source.train, source.test)}
    assert len(shapes) == 1
    channels = shapes.pop()[0]
    assert len(source.mean) == len(source.std) == channels
    assert all(std > 0 for std in source.std)
    assert torch.equal(source.train.labels, again.train.labels)
    first = torch.arange(5)
    assert torch.equal(source.train.read(first), again.train.read(first))


def _check_split(split: Split, classes: int) -> torch.Size:
    assert split.labels.dtype == torch.int64
    assert split.labels.device.type == "cpu"
    assert len(split.labels) > 0
    assert int(split.labels.min()) >= 0
    assert int(split.labels.max()) < classes
    pixels = split.read(torch.tensor([3, 0, 3]))
    assert pixels.dtype in (torch.uint8, torch.float32)
    assert torch.equal(pixels[0], pixels[2])
    if pixels.dtype == torch.float32:
        assert float(pixels.min()) >= 0
        assert float(pixels.max()) <= 1
    return pixels.shape[1:]
