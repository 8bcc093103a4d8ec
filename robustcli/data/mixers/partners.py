"""What mixers share: the share of an image that stays, who it is mixed with, and the labels of both."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.threat.noise import Noise

# Each candidate is taken with a chance above 0.95: that none of so many is has a chance below 1e-20.
_CANDIDATES = 16


def beta(concentration: float, like: Tensor, rng: Noise) -> Tensor:
    """A number of Beta(a, a) on the device of `like`, float64, without asking the device anything.

    Reference: a quotient of two gamma variates, each by Marsaglia and Tsang, ACM TOMS 2000; in logarithms,
        since for small a the variates themselves are below the smallest number.
    """
    logs = _log_gamma(concentration, like, rng)
    return (logs[0] - logs[1]).sigmoid()


def _log_gamma(shape: float, like: Tensor, rng: Noise) -> Tensor:
    """Logarithms of two independent gamma variates."""
    candidates = torch.empty((2, _CANDIDATES), device=like.device, dtype=torch.float64)
    z, u = rng.normal(candidates), 1 - rng.uniform(candidates)
    # For shape + 1, where the method is at home, and then back down by a power of a uniform number.
    d = shape + 1 - 1 / 3
    root = 1 + z / math.sqrt(9 * d)
    v = root.clamp_min(0) ** 3
    log_v = torch.where(root > 0, v, 1).log()
    is_taken = (root > 0) & (u.log() < z.square() / 2 + d - d * v + d * log_v)
    first = is_taken.int().argmax(1, keepdim=True)
    down = (1 - rng.uniform(candidates[:, :1])).log() / shape
    return math.log(d) + log_v.gather(1, first).squeeze(1) + down.squeeze(1)


def partners(x: Tensor, rng: Noise) -> Tensor:
    """A permutation of the batch: who each image is mixed with, (n,) int64."""
    return rng.uniform(torch.empty(len(x), device=x.device, dtype=torch.float64)).argsort()


def mixed_labels(y: Tensor, partner: Tensor, kept: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """kept * q + (1 - kept) * q of the partner: class shares (n, k) of labels or of class shares."""
    shares = F.one_hot(y, classes).to(dtype) if y.dim() == 1 else y
    kept = kept.to(shares.dtype)
    return kept * shares + (1 - kept) * shares[partner]
