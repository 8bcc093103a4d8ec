"""Base of parts of training without state."""

from typing import Any, Self


class Stateless:
    """A part without state: `start` returns the part itself, and nothing is saved."""

    def start(self, *_: Any, **__: Any) -> Self:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "a part without state was given some"
