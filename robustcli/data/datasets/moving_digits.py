"""Short clips: handwritten digits that drift over an empty square, to be told by the way they go."""

import numpy as np
import torch
from torch import Tensor

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.embedded_digits import embedded_digits
from robustcli.registry.types import Count

_SIDE = 16
# Pixels down and to the right that a digit goes from one frame to the next.
_WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@DATASETS.register("moving_digits", train_images=1_437, test_images=360)
def moving_digits(*, frames: Count = 8) -> Source:
    """1,797 clips of 16 x 16 pixels: in each a digit goes up, down, left or right, one pixel a frame.

    The frames of a clip are its channels, in their order. What leaves on one side comes back on the other, and where a
    digit begins is drawn: no single frame says where it goes, and the classes are the ways, not the digits. Digits,
    and who is in which part, are those of `digits`; ways and beginnings are drawn once and for all from
    `numpy.random.RandomState(0)`, for the train clips first.

    Args:
        frames: of every clip.

    Reference: made of the digits of Alpaydin and Kaynak, UCI Machine Learning Repository, 1998; the idea of drifting
        digits is that of Srivastava et al., "Unsupervised Learning of Video Representations using LSTMs", ICML 2015.
    """
    draws = np.random.RandomState(0)
    parts = []
    for still in embedded_digits():
        images = still.images[:, 0]
        ways = draws.randint(len(_WAYS), size=len(images))
        begins = draws.randint(_SIDE, size=(len(images), 2))
        clips = [_clip(*drawn, frames) for drawn in zip(images, ways, begins, strict=True)]
        parts.append(TensorSplit(torch.stack(clips), torch.from_numpy(ways).long()))
    train, test = parts
    mean, std = channel_statistics(train.images)
    return Source(train=train, test=test, classes=list(_WAYS), mean=mean, std=std)


def _clip(digit: Tensor, way: int, begin: np.ndarray, frames: int) -> Tensor:
    """A digit (8, 8) on its way: (frames, side, side)."""
    canvas = digit.new_zeros(_SIDE, _SIDE)
    canvas[: digit.shape[0], : digit.shape[1]] = digit
    down, right = list(_WAYS.values())[way]
    moves = [(int(begin[0]) + frame * down, int(begin[1]) + frame * right) for frame in range(frames)]
    return torch.stack([canvas.roll(move, (0, 1)) for move in moves])
