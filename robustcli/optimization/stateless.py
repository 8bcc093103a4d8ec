"""Parts of training with a state that checkpoints keep, and without one."""

from typing import Any, Protocol, Self


class Stateful(Protocol):
    """A part with a state."""

    def state_dict(self) -> dict[str, Any]:
        """State, as tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


class Stateless:
    """A part without state: `start` returns the part itself, and nothing is saved."""

    def start(self, *_: Any, **__: Any) -> Self:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "a part without state was given some"
