"""Short clips of handwritten digits that move over an empty square, classified by direction."""

import numpy as np
import torch
from torch import Tensor

from robustcli.data.datasets import DATASETS, Source, TensorSplit
from robustcli.data.datasets.channel_statistics import channel_statistics
from robustcli.data.datasets.digits import embedded_digits
from robustcli.registry.types import Count

_SIDE = 16
# Movement per frame, in pixels down and to the right.
_WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


@DATASETS.register("moving_digits", train_images=1_437, test_images=360)
def moving_digits(*, frames: Count = 8) -> Source:
    """1,797 clips of 16 x 16 pixels with a digit that moves up, down, left or right by one pixel per frame.

    The classes are the four directions, not the digits. The frames of a clip are its channels. A digit that leaves on
    one side returns on the other, and its first position is random, so a single frame does not show the direction.
    Digits and split are those of `digits`; directions and first positions are drawn from `numpy.random.RandomState(0)`,
    for train clips first.

    Args:
        frames: number of frames of a clip.

    Reference: digits by Alpaydin and Kaynak, UCI Machine Learning Repository, 1998; moving
        digits as in Srivastava et al., "Unsupervised Learning of Video Representations using LSTMs", ICML 2015.
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
    """Return a clip (frames, side, side) of a moving digit (8, 8)."""
    canvas = digit.new_zeros(_SIDE, _SIDE)
    canvas[: digit.shape[0], : digit.shape[1]] = digit
    down, right = list(_WAYS.values())[way]
    moves = [(int(begin[0]) + frame * down, int(begin[1]) + frame * right) for frame in range(frames)]
    return torch.stack([canvas.roll(move, (0, 1)) for move in moves])
