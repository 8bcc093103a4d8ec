"""Base of parts of training that keep nothing between updates."""

from typing import Any, Self


class Stateless:
    """A part whose settings do all its work: `start` returns the part itself, and there is no state to save."""

    def start(self, *_: Any, **__: Any) -> Self:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "a part without state was given some"
