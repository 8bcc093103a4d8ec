"""Forwards with equal random draws: dropout and stochastic depth keep their masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import device, nn


@contextmanager
def masks_matched(model: nn.Module, place: device) -> Iterator[None]:
    """Give every forward of the model inside the same random numbers, and restore the generator at the end.

    Masks come from torch's global generator of the model's device. Two contexts in a row use the same masks if nothing
    is drawn in between; batches of another size have other masks.

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
