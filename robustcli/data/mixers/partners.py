"""Helpers of mixers: the share of an image that stays, its partner, and the labels of both."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.data.targets import Labels
from robustcli.threat.noise import Noise

# Each candidate is accepted with probability above 0.95, so all are rejected with probability below 1e-20.
_CANDIDATES = 16


def beta(concentration: float, like: Tensor, rng: Noise) -> Tensor:
    """Draw from Beta(a, a) on the device of `like`, in float64, without waiting for the device.

    Reference: a quotient of two gamma variates, each by Marsaglia and Tsang, ACM TOMS 2000; in logarithms,
        because for small a the variates underflow.
    """
    logs = _log_gamma(concentration, like, rng)
    return (logs[0] - logs[1]).sigmoid()


def _log_gamma(shape: float, like: Tensor, rng: Noise) -> Tensor:
    """Logarithms of two independent gamma variates."""
    candidates = torch.empty((2, _CANDIDATES), device=like.device, dtype=torch.float64)
    z, u = rng.normal(candidates), 1 - rng.uniform(candidates)
    # The method is for shapes above 1: draw for shape + 1, then scale by a power of a uniform number.
    d = shape + 1 - 1 / 3
    root = 1 + z / math.sqrt(9 * d)
    v = root.clamp_min(0) ** 3
    log_v = torch.where(root > 0, v, 1).log()
    is_taken = (root > 0) & (u.log() < z.square() / 2 + d - d * v + d * log_v)
    first = is_taken.int().argmax(1, keepdim=True)
    down = (1 - rng.uniform(candidates[:, :1])).log() / shape
    return math.log(d) + log_v.gather(1, first).squeeze(1) + down.squeeze(1)


def partners(x: Tensor, rng: Noise) -> Tensor:
    """The partner of each image: a permutation of the batch, (n,) int64."""
    return rng.uniform(torch.empty(len(x), device=x.device, dtype=torch.float64)).argsort()


def mixed_labels(labels: Labels, partner: Tensor, kept: Tensor, classes: int, dtype: torch.dtype) -> Labels:
    """kept * q + (1 - kept) * q of the partner, as class shares (n, k)."""

    def mixed(y: Tensor) -> Tensor:
        shares = F.one_hot(y, classes).to(dtype) if y.dim() == 1 else y
        share = kept.to(shares.dtype)
        return share * shares + (1 - share) * shares[partner]

    return labels.map(mixed)
