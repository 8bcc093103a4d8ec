"""A fixed permutation of a data set, independent of seeds."""

import numpy as np
import torch
from torch import Tensor


def fixed_order(count: int) -> Tensor:
    """Return a permutation of the numbers below count that is the same in every run: (count,) int64.

    NumPy guarantees that the stream of RandomState never changes; torch gives no such guarantee.
    """
    return torch.from_numpy(np.random.RandomState(0).permutation(count).astype(np.int64))
