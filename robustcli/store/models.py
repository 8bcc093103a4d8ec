"""Base of the models of stored files: strict types, and one error for a damaged or foreign file."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from robustcli.errors import RobustCliError

_WIDEST = 40
_MOST_PROBLEMS = 10


def _is_radius(text: str) -> str:
    try:
        Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError("a number as text, such as '8/255' or '0.5'") from None
    return text


Radius = Annotated[str, AfterValidator(_is_radius)]
Count = Annotated[int, Field(ge=0)]


class Stored(BaseModel):
    """Part of a file with strict types; derived keys are not read."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", serialize_by_alias=True, validate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys of the file."""
        return self.model_dump(mode="json")


_Model = TypeVar("_Model", bound=Stored)


def parsed(kind: type[_Model], raw: Any, path: Path | str) -> _Model:
    """Model of the content of a file.

    Args:
        path: the file, for messages.

    Raises:
        RobustCliError: the content is not of this kind; the message has file, keys, found and expected values.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors()]
    shown = problems[:_MOST_PROBLEMS]
    rest = [f"and {len(problems) - len(shown)} more"] * (len(problems) > len(shown))
    if len(problems) == 1:
        raise RobustCliError(f"{path}: {problems[0]}")
    raise RobustCliError("\n  ".join([f"{path}: {len(problems)} problems", *shown, *rest]))


def _problem(details: ErrorDetails) -> str:
    key = ".".join(map(str, details["loc"])) or "the file"
    if details["type"] == "missing":
        return f"{key}: found nothing; expected this key"
    if key.endswith("survivors"):
        expected = "a 0 or a 1 for every image"
    else:
        text = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        expected = "keys and values" if details["type"] == "model_type" else text
    return f"{key}: found {short(details['input'])}; expected {expected}"


def short(value: Any) -> str:
    """Value as text for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
