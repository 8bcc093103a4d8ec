"""Presets: evaluations by name, such as that of a leaderboard. The shipped ones are files in robustcli/presets/."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import robustcli
from robustcli.errors import RobustCliError, shortened, suggest
from robustcli.registry.types import Norm, Ratio, exact_text

_KEYS = ("data", "norm", "eps", "examples", "attack", "seed")


def names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def summary(name: str) -> str:
    """First comment line of a shipped preset."""
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def read_preset(name: str) -> dict[str, Any]:
    """Return the options of a preset: any of data, norm, eps (as text), examples, attack and seed.

    Args:
        name: shipped name, or a file.

    Raises:
        RobustCliError: there is none, or it has other keys or values.
    """
    # Reading YAML takes longer than listing names.
    from robustcli.specs.yamlfile import read_yaml

    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else _folder() / f"{name}.yaml"
    if not path.is_file():
        raise RobustCliError(f"--preset: there is no preset '{name}'{suggest(name, names())}")
    found = read_yaml(path).value
    if not isinstance(found, Mapping) or not found:
        raise RobustCliError(f"{path}: expected some of the keys {', '.join(_KEYS)}")
    for key, value in found.items():
        if key not in _KEYS:
            raise RobustCliError(f"{path}: unknown key '{key}'{suggest(str(key), _KEYS)}")
        if not _is_sound(str(key), value):
            raise RobustCliError(f"{path}: {key}: found '{shortened(str(value))}'; expected {_EXPECTED[str(key)]}")
    return {key: _text(value) if key == "eps" else value for key, value in found.items()}


_EXPECTED = {
    "data": "the name of a data set, an .npz file or a folder",
    "norm": f"one of {', '.join(get_args(Norm))}",
    "eps": "a number such as 8/255",
    "examples": "a number of images",
    "attack": "an evaluator or an attack",
    "seed": "a whole number of at least 0",
}


def _is_sound(key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if key in ("examples", "seed"):
        return isinstance(value, int) and value >= (1 if key == "examples" else 0)
    if key == "eps":
        return isinstance(value, int | float) and value >= 0
    return isinstance(value, str) and (key != "norm" or value in get_args(Norm))


def _text(eps: float) -> str:
    return exact_text(eps.fraction if isinstance(eps, Ratio) else Fraction(str(eps)))


def _folder() -> Path:
    return Path(robustcli.__file__).parent / "presets"
