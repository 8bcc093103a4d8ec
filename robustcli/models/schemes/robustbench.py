"""robustbench:NAME, a model of RobustBench's zoo in the matching architecture of this project.

robustbench.csv lists the models of the zoo with a known architecture: name, data set, threat model, normalization and
identifier at Google Drive. Ensembles and networks with special layers are not included.
"""

import csv
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, suggest
from robustcli.models.download import download, folder
from robustcli.models.schemes import NamedFile, Scheme
from robustcli.models.source import ModelSource
from robustcli.specs.yamlfile import parse_scalar

# Server of the downloads; the environment may name another one, such as a mirror.
_ADDRESS = "https://drive.usercontent.google.com/download?export=download&confirm=t&id={id}"
_VARIABLE = "ROBUST_ROBUSTBENCH_URL"
_THREATS = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
_SIZES = {"cifar10": 32, "cifar100": 32, "imagenet": 224}
# Models that their authors evaluate on larger images.
_LARGER = {("imagenet", "Wong2020Fast"): 288}
_IMAGENET = (
    "RobustBench resizes and crops images in its own way; an image folder here uses the central square, so "
    "accuracies may differ slightly"
)


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        name, dataset, threat: as in RobustBench; a threat is "linf 8/255" or "corruptions".
        architecture: registered name and settings, as on a command line.
        mean, std: normalization before the network, one number for each channel or one for all.
        weights_key: key of the weights in the file.
        unused: prefix of tensors that the network does not have.
        google_drive: identifier of the file.
    """

    name: str
    dataset: str
    threat: str
    architecture: str
    mean: str
    std: str
    weights_key: str
    unused: str
    google_drive: str

    @property
    def full_name(self) -> str:
        """Unique name, such as cifar10/Linf/Carmon2019Unlabeled."""
        return f"{self.dataset}/{_THREATS[self.threat.partition(' ')[0]]}/{self.name}"

    @property
    def url(self) -> str:
        """Address of the file."""
        return os.environ.get(_VARIABLE, _ADDRESS).replace("{id}", self.google_drive)

    @property
    def settings(self) -> dict[str, Any]:
        """The architecture in the form of a spec."""
        name, *settings = self.architecture.split()
        pairs = (setting.partition("=") for setting in settings)
        return {"name": name, **{key: parse_scalar(value) for key, _, value in pairs}}


def find(name: str, weights: str | None) -> ModelSource | NamedFile:
    """Find a model by its name in RobustBench; its weights are downloaded once.

    Args:
        name: NAME, or DATASET/THREAT/NAME where several models have the name.
        weights: a file with the weights, instead of a download.

    Raises:
        RobustCliError: there is no such model, or several, or its weights cannot be downloaded.
    """
    entry = entry_of(name)
    title = f"robustbench:{entry.full_name}"
    if weights is None:
        path = folder() / "robustbench" / f"{entry.full_name}.pt"
        notes = [f"{path.name}: from {entry.url}, SHA-256 {download(entry.url, path, title)}"]
    elif Path(weights).is_file():
        path, notes = Path(weights), []
    else:
        raise RobustCliError(f"--weights: {weights}: no such file")
    norm, _, eps = entry.threat.partition(" ")
    mean, std = (tuple(float(number) for number in text.split()) for text in (entry.mean, entry.std))
    return NamedFile(
        path=path,
        title=title,
        architecture=entry.settings,
        weights_key=entry.weights_key or None,
        unused=entry.unused or None,
        mean=mean,
        std=std,
        images=None if entry.dataset == "imagenet" else entry.dataset,
        size=_LARGER.get((entry.dataset, entry.name), _SIZES[entry.dataset]),
        norm=norm if eps else None,
        eps=eps or None,
        notes=(*notes, *([_IMAGENET] if entry.dataset == "imagenet" else [])),
    )


def entry_of(name: str) -> Entry:
    """Return the entry of a model.

    Raises:
        RobustCliError: there is none, or there are several.
    """
    known = entries()
    found = [entry for entry in known if name in (entry.full_name, entry.name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"robustbench:{entry.full_name}" for entry in found)
        raise RobustCliError(f"robustbench:{name}: {len(found)} models have this name; write one of {names}")
    raise RobustCliError(
        f"robustbench:{name}: there is no such model, or this project does not know its architecture"
        f"{suggest(name.rpartition('/')[2], {entry.name for entry in known})}"
    )


def match(pattern: str) -> list[str]:
    """Return the full names that match a pattern such as cifar10/Linf/*.

    Raises:
        RobustCliError: none does, or they belong to several data sets or threat models, which one command cannot
            evaluate.
    """
    found = [entry.full_name for entry in entries() if fnmatchcase(entry.full_name, pattern)]
    found = found or [entry.full_name for entry in entries() if fnmatchcase(entry.name, pattern)]
    groups = sorted({name.rpartition("/")[0] for name in found or (entry.full_name for entry in entries())})
    if len(groups) == 1 and found:
        return found
    problem = "matches models of several data sets or threat models" if found else "matches no model"
    choices = ", ".join(f"'robustbench:{group}/*'" for group in groups)
    raise RobustCliError(f"robustbench:{pattern}: {problem}; write one of {choices}")


@cache
def entries() -> tuple[Entry, ...]:
    """Return all models of the table."""
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return tuple(Entry(**row) for row in csv.DictReader(file))


SCHEME = Scheme(form="robustbench:NAME", find=find, match=match)
