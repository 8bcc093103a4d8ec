"""The networks that the attacks of an evaluation search with, and the choice between an exact and a coarse copy."""

import math
import statistics
import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcli.attacks.surrogate import Surrogate
from robustcli.evaluation.passes import run_pass
from robustcli.evaluators import Stage
from robustcli.runtime.precision import is_native

# Smallest gain in speed for which passes are made in bf16, because a coarse search misses some images. After one with
# gradients, survivors also take a few last steps with the network.
_CLEARLY, _CLEARLY_WITH_GRADIENTS = 1.1, 1.2
# Images leave as they break, so most passes of attacks with gradients have fewer points than the first ones. Black-box
# attacks come last, when few images break.
_LEAVING = 4
# Measured pairs of passes; one pair before them is not measured, because it may include preparations.
_PAIRS = 5


class Searches:
    """The networks that the stages of an evaluation search with; stages with equal surrogates share one.

    Args:
        model: network evaluated.
        stages: stages of the evaluation.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Stage]) -> None:
        self._model = model
        wanted = [surrogate for stage in stages for surrogate in (stage.surrogate, stage.faster)]
        self._networks = {one: one(model) for one in dict.fromkeys(wanted) if one is not None}
        # By surrogates, kind of pass and size of the batch.
        self._pays: dict[tuple[Surrogate | None, Surrogate, bool, int], bool] = {}

    def of(self, stage: Stage) -> list[nn.Module]:
        """Return the networks that a stage may search with."""
        faster = [] if stage.faster is None else [self._networks[stage.faster]]
        return [self._usual(stage), *faster]

    def choose(self, stage: Stage, x: Tensor, size: int) -> tuple[Surrogate | None, nn.Module]:
        """Return the surrogate for a call, None for the network evaluated, and the network to search with.

        The faster surrogate of a stage is chosen where its passes take clearly less time; if not, a warning says so.

        Args:
            x: images of the call.
            size: largest number of points in one pass.
        """
        usual = self._usual(stage)
        if stage.faster is None:
            return stage.surrogate, usual
        faster = self._networks[stage.faster]
        # In bf16 without instructions for it a single pass may take ten times as long.
        if not stage.faster.is_coarse or is_native("bf16", x.device):
            points = min(size, len(x) * stage.attack.side_by_side)
            points = max(1, points if stage.is_black_box else points // _LEAVING)
            # Sizes within a factor of sqrt(2) count as equal.
            kind = (stage.surrogate, stage.faster, not stage.is_black_box, round(2 * math.log2(points)))
            if kind not in self._pays:
                batch = x[torch.arange(points, device=x.device) % len(x)]
                gain = _gain(faster, usual, batch, has_gradients=not stage.is_black_box)
                self._pays[kind] = gain > (_CLEARLY if stage.is_black_box else _CLEARLY_WITH_GRADIENTS)
            if self._pays[kind]:
                return stage.faster, faster
        warnings.warn(
            f"precision fast: {stage.name} searched in fp32, because on this device passes in bf16 do not take "
            "clearly less time for this network and number of images",
            stacklevel=2,
        )
        return stage.surrogate, usual

    def _usual(self, stage: Stage) -> nn.Module:
        return self._model if stage.surrogate is None else self._networks[stage.surrogate]


def _gain(faster: nn.Module, usual: nn.Module, batch: Tensor, *, has_gradients: bool) -> float:
    """Return the time of a pass of the usual network as a multiple of that of the faster one."""
    pairs = [
        (_seconds(usual, batch, has_gradients=has_gradients), _seconds(faster, batch, has_gradients=has_gradients))
        for _ in range(_PAIRS + 1)
    ]
    return statistics.median(slow / max(fast, 1e-9) for slow, fast in pairs[1:])


def _seconds(network: nn.Module, batch: Tensor, *, has_gradients: bool) -> float:
    """Return the time of a forward pass, or of a forward pass and a gradient."""
    # Thread time is less disturbed by other programs, but does not measure an accelerator.
    clock = time.thread_time if batch.device.type == "cpu" else time.perf_counter
    start = clock()
    # Reading a number waits for an accelerator.
    run_pass(network, batch, has_gradient=has_gradients).flatten()[0].item()
    return clock() - start
