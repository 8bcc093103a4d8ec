"""Passes of a network that draw the same: dropout and stochastic depth keep their masks from pass to pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import device, nn


@contextmanager
def masks_matched(model: nn.Module, place: device) -> Iterator[None]:
    """Every forward of the model inside draws what the first one draws; outside, the next draw is that one again.

    Masks of dropout and stochastic depth come from torch's global generator of the model's device, which is put
    back before every forward and at the end. Two contexts in a row therefore see the same masks, as long as
    nothing is drawn in between; batches of another size see other ones.

    Args:
        place: the device of the model.
    """
    before = _state(place)

    def draw_again(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        _put_back(place, before)

    hook = model.register_forward_pre_hook(draw_again)
    try:
        yield
    finally:
        hook.remove()
        _put_back(place, before)


def _state(place: device) -> torch.Tensor:
    return torch.cuda.get_rng_state(place) if place.type == "cuda" else torch.get_rng_state()


def _put_back(place: device, state: torch.Tensor) -> None:
    if place.type == "cuda":
        torch.cuda.set_rng_state(state, place)
    else:
        torch.set_rng_state(state)
