"""Distinguish runs of one name, such as those of a grid, by the differing values of their specs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.specs.yamlfile import flat, plain_text
from robustcli.store.files import read_yaml

# Maximum number of values shown.
_SHOWN = 4


def variants_of(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """Return the values in which each run differs from the others of its name, such as "beta=3, epochs=10".

    Args:
        runs: name, and spec.yaml of each; a spec that is missing or damaged has no variant.
    """
    # Folders of runs are called DIGEST-sSEED, and the seeds of a digest have one spec.
    keys = [(name, path.parent.name.rpartition("-s")[0] or str(path)) for name, path in runs]
    first = {key: path for key, (_, path) in zip(reversed(keys), reversed(runs), strict=True)}
    counts = Counter(name for name, _ in first)
    known = {key: _values(path) if counts[key[0]] > 1 else {} for key, path in first.items()}
    specs = [known[key] for key in keys]
    of_name: dict[str, list[Mapping[str, Any]]] = {}
    for (name, _), spec in zip(runs, specs, strict=True):
        if spec and spec not in of_name.setdefault(name, []):
            of_name[name].append(spec)
    differing = {name: _differing(known) for name, known in of_name.items()}
    return [_shown(spec, differing[name]) if spec else "" for (name, _), spec in zip(runs, specs, strict=True)]


def _values(path: Path) -> dict[str, Any]:
    """Values of a spec by dotted key, without its seed, and without its claim, which may be corrected later."""
    try:
        value = read_yaml(path)
    except RobustCliError:
        return {}
    return {key: item for key, item in flat(value) if key != "seed" and not key.startswith("claim.")}


def _differing(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for spec in specs for key in spec)
    return [key for key in keys if len({repr(spec.get(key)) for spec in specs}) > 1]


def _shown(spec: Mapping[str, Any], keys: Sequence[str]) -> str:
    values = [f"{key.rpartition('.')[2]}={plain_text(spec[key])}" for key in keys if key in spec]
    return ", ".join(values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")
