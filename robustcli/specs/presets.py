"""Presets: evaluations by name, such as that of a leaderboard. The shipped ones are files in robustcli/presets/."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import robustcli
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.types import Count, Norm, Radius, Size, exact_text


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Options of an evaluation; None is not set.

    Args:
        data: name of a data set, an .npz file or a folder.
        norm: norm of the threat model.
        eps: its radius, as a number or a quotient such as 8/255.
        examples: number of images.
        attack: an evaluator or an attack.
        seed: seed of the noise.
    """

    data: str | None = None
    norm: Norm | None = None
    eps: Radius | None = None
    examples: Count | None = None
    attack: str | None = None
    seed: Size | None = None


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
    from robustcli.specs.check import checked_settings
    from robustcli.specs.yamlfile import read_yaml

    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else _folder() / f"{name}.yaml"
    if not path.is_file():
        raise RobustCliError(f"--preset: there is no preset '{name}'{suggest(name, names())}")
    preset = checked_settings(Preset, read_yaml(path).value, ("preset",), str(path))
    given = {key: value for key, value in asdict(preset).items() if value is not None}
    return {key: exact_text(value) if key == "eps" else value for key, value in given.items()}


def _folder() -> Path:
    return Path(robustcli.__file__).parent / "presets"
