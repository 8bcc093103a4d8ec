"""Experiment specs: read from YAML and checked as a whole before anything is imported or built."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from robustcli.errors import RobustCliError, SpecError, shortened
from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.registry.registry import MemberSpec
from robustcli.registry.signatures import Parameter
from robustcli.registry.types import DEVICE, Family, Ratio, Size
from robustcli.specs.check import Checker, family_of, is_sound, settings_kind, settings_of, to_plain, with_leaves
from robustcli.specs.guards import findings
from robustcli.specs.kept_settings import gathered
from robustcli.specs.places import Level, Where
from robustcli.specs.renamed import (
    as_written,
    current,
    current_defense,
    former,
    former_defense,
    understood,
    understood_defense,
)
from robustcli.specs.settings import (
    ARCHITECTURE,
    DATASET,
    EVALUATOR,
    Claim,
    ThreatSettings,
    TrainSettings,
)
from robustcli.specs.yamlfile import DEEPEST, Document, parse_scalar, parse_yaml, read_yaml, to_yaml

# Names are used for folders and files.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, StringConstraints(pattern=NAME)]

# Paths and devices, which do not change the experiment.
_PLACES = ("root", "path", "download")
_PLACES_OF_EXTRA = ("path", "labels")


@dataclass(frozen=True, kw_only=True)
class ExperimentSpec:
    """One experiment with all parameters resolved.

    Args:
        name: name of the experiment, for folders.
        seed: seed of initialization, order of images, augmentation and attacks.
        data: data set and its processing.
        architecture: the network.
        threat: norm and radius, for training and evaluation.
        defense: the training method.
        train: epochs, optimizer, learning rate, precision, and the epoch whose weights are kept.
        evaluate: evaluators by the names of their results.
        claim: a published result to compare with.
    """

    name: Name
    seed: Size = 0
    data: Annotated[MemberSpec, DATASET]
    architecture: Annotated[MemberSpec, ARCHITECTURE]
    threat: ThreatSettings
    defense: Annotated[MemberSpec, Family("defenses")]
    train: TrainSettings
    evaluate: Mapping[str, Annotated[MemberSpec, EVALUATOR]] = field(default_factory=dict)
    claim: Claim | None = None

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> "ExperimentSpec":
        """Read and check a file with dotted overrides (`train.epochs=3`) applied.

        Raises:
            SpecError: with all problems at once, each with its place.
        """
        return cls.check(overridden(read_yaml(path), overrides))

    @classmethod
    def read_stored(cls, path: Path) -> "ExperimentSpec":
        """Read the spec in the folder of a run, which may have names of earlier versions."""
        return cls.check(read_yaml(path), is_stored=True)

    @classmethod
    def parse(cls, text: str, source: str) -> "ExperimentSpec":
        """Check the text of a spec, such as the one inside a checkpoint."""
        return cls.check(parse_yaml(text, source), is_stored=True)

    @classmethod
    def check(cls, document: Document, *, is_stored: bool = False) -> "ExperimentSpec":
        """Check a parsed spec.

        Args:
            is_stored: the spec was written by a program; names of earlier versions are accepted without a warning.
        """
        checker = Checker()
        value = document.value
        if not isinstance(value, Mapping):
            raise SpecError(document.source, [f"not a mapping; a spec has the keys {', '.join(settings_of(cls))}"])
        if "rows" in value:
            raise SpecError(document.source, ["holds rows, each of them a spec: run it with robust sweep"])
        if "defense" in value:
            written = value["defense"]
            value = {
                **value,
                "defense": current_defense(written) if is_stored else understood_defense(written, document.source),
            }
        known = settings_of(cls)
        simple = {name: parameter for name, parameter in known.items() if name not in ("evaluate", "claim")}
        checker.homes = _homes(simple, value)
        for key in value:
            if key not in known:
                checker.unknown((key,), known, "unknown key")
        resolved = checker.parameters(simple, {k: v for k, v in value.items() if k in simple}, (), "every spec")
        checker.homes = {}  # In an evaluator, `steps` means those of its attack.
        written = {} if value.get("evaluate") is None else value["evaluate"]
        evaluate = current(written) if is_stored else understood(written, document.source)
        resolved["evaluate"] = _check_evaluate(checker, evaluate)
        resolved["claim"] = (
            checker.settings(Claim, value["claim"], ("claim",)) if value.get("claim") is not None else None
        )
        device = getattr(resolved.get("train"), "device", "auto")
        # Stored specs of earlier versions may have others.
        if not is_stored and not re.fullmatch(DEVICE, device):
            checker.problems.append(
                (("train", "device"), f"'{shortened(device)}' is not one of auto, cpu, cuda, cuda:i")
            )
        sound = {key: part for key, part in resolved.items() if is_sound(part)}
        checker.problems += findings("refuse", sound)
        if not checker.problems:
            return cls(**resolved)
        problems = gathered(document, checker.problems)
        ordered = sorted(problems, key=lambda problem: _line(document, problem[0]))
        raise SpecError(document.source, [located(document, where) + text for where, text in ordered])

    def problems(self) -> list[tuple[Where, str]]:
        """Return rejected combinations, with the place of each; none in a checked spec."""
        return self._found("refuse")

    def warnings(self) -> list[str]:
        """Return combinations that are legal but probably not intended."""
        return [f"{'.'.join(map(str, where))}: {text}" for where, text in self._found("warn")]

    def notes(self) -> list[str]:
        """Return combinations that may be intended, with facts for the author of the spec."""
        return [f"{'.'.join(map(str, where))}: {text}" for where, text in self._found("note")]

    def _found(self, level: Level) -> list[tuple[Where, str]]:
        return findings(level, {item.name: getattr(self, item.name) for item in fields(self)})

    def to_plain(self) -> dict[str, Any]:
        """Return the spec as plain values, with all defaults."""
        plain: dict[str, Any] = to_plain(self)
        if self.claim is None:
            del plain["claim"]
        return plain

    def to_yaml(self) -> str:
        """Return the spec as YAML; reading it gives an equal spec."""
        return to_yaml(self.to_plain())

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify the experiment, without its seed, its claim and its machine."""
        plain = self.to_plain()
        plain.pop("seed")
        plain.pop("claim", None)
        plain["train"].pop("device")
        plain["train"].pop("log")
        # If left to the machine, they are not part of the experiment; these values keep the digests of old versions.
        for key, before in (("channels_last", False), ("precision", "fp32"), ("compile", False)):
            if plain["train"][key] == "auto":
                plain["train"][key] = before
        # Added later; its default leaves runs unchanged.
        if not plain["train"]["sync_batch_norm"]:
            del plain["train"]["sync_batch_norm"]
        # Before this option existed, attacks used smoothed labels.
        if not self.data.options.is_smoothed or plain["data"]["smoothing_for"] == "both":
            del plain["data"]["smoothing_for"]
        # Added later; "none" leaves runs unchanged.
        if plain["architecture"]["preprocess"] == {"name": "none"}:
            del plain["architecture"]["preprocess"]
        # Without soft labels there is nothing to choose.
        if plain["defense"].get("soft_labels") == "refuse":
            del plain["defense"]["soft_labels"]
        for place in _PLACES:
            plain["data"].pop(place, None)
        for place in _PLACES_OF_EXTRA:
            (plain["data"]["extra"] or {}).pop(place, None)
        plain = _as_before(plain)
        plain["defense"], plain["evaluate"] = former_defense(plain["defense"]), former(plain["evaluate"])
        text = json.dumps(plain, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _homes(parts: Mapping[str, Parameter], value: Mapping[str, Any]) -> dict[str, str]:
    """Return the dotted path of every key that a spec with these members may have, other than in evaluators."""
    inside: list[tuple[str, Mapping[str, Parameter]]] = []
    for part, parameter in parts.items():
        family = family_of(parameter.annotation)
        if family is None:
            kind, _ = settings_kind(parameter.annotation)
            # Before the members: `norm` is that of the threat, although some architectures have a setting of this name.
            inside.insert(0, (part, settings_of(kind) if kind else {}))
            continue
        chosen = value.get(part)
        member = catalog(family.name).get(str(chosen.get("name") if isinstance(chosen, Mapping) else chosen))
        inside.append((part, settings_of(family.options) if family.options else {}))
        inside.append((part, member.parameters if member else {}))
    homes = {key: f"{part}.{key}" for part, keys in reversed(inside) for key in keys}
    return {**homes, **{part: part for part in parts}}


def _as_before(value: Any) -> Any:
    """Remove added parameters of members that have their neutral value."""
    if isinstance(value, Mapping):
        added = _added(str(value.get("name")))
        kept = {key: item for key, item in value.items() if key not in added or item != added[key]}
        return {key: _as_before(item) for key, item in kept.items()}
    return [_as_before(item) for item in value] if isinstance(value, list) else value


@cache
def _added(name: str) -> dict[str, Any]:
    """Return added parameters of all members with a name, in all families."""
    members = [catalog(family)[name] for family in FAMILIES if name in catalog(family)]
    return {key: value for member in members for key, value in member.added.items()}


def _check_evaluate(checker: Checker, value: Any) -> dict[str, MemberSpec]:
    if not isinstance(value, Mapping):
        checker.problems.append((("evaluate",), "not a mapping of result names to evaluators"))
        return {}
    for key in value:
        if not re.fullmatch(NAME, key):
            checker.problems.append((("evaluate", key), "names of results may contain letters, digits, _ . and - only"))
    return {key: checker.chosen(EVALUATOR, item, ("evaluate", key)) for key, item in value.items()}


def overridden(document: Document, overrides: Sequence[str]) -> Document:
    """Return the document with values replaced; a member written as only its name becomes a mapping.

    A whole part, such as defense=trades, is replaced before its keys, such as defense.beta=3, in any order.
    """
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].count(".")):
        key, equals, text = override.partition("=")
        if override and not equals and Path(override).exists():
            raise RobustCliError(
                f"'{override}': a second file or folder; this command takes one, and changes such as train.epochs=30"
            )
        if not equals or not all(key.split(".")):
            raise RobustCliError(f"override '{shortened(override)}': write key.subkey=value, such as train.epochs=30")
        if key.count(".") >= DEEPEST:
            raise RobustCliError(
                f"override '{shortened(override)}': nested too deeply; expected at most {DEEPEST} levels"
            )
        document = with_value(document, key, parse_scalar(text), f"override {override}")
    return document


def with_value(document: Document, key: str, new: Any, place: str) -> Document:
    """Return the document with one value replaced.

    Args:
        key: dotted path of the value, such as "train.epochs".
        place: where the new value was written, for messages.
    """
    path = tuple(as_written(key.split("."), document.value))
    value = _replaced(document.value if isinstance(document.value, Mapping) else {}, list(path), new, place)
    # The replaced value has no place any more; new mappings around the value get the place of the override.
    places = {where: known for where, known in document.places.items() if where[: len(path)] != path}
    for depth in range(1, len(path)):
        places.setdefault(path[:depth], place)
    places[path] = place
    return Document(document.source, value, places)


def override_text(text: str, overrides: Sequence[str], source: str) -> str:
    """Return the text of a spec with dotted overrides applied; quotients such as 8/255 stay quotients."""
    if not overrides:
        return text
    value = overridden(parse_yaml(text, source), overrides).value
    # As decimals, quotients would be other numbers.
    return to_yaml(with_leaves(value, lambda number: number.fraction if isinstance(number, Ratio) else number))


def _replaced(value: Any, keys: list[str], new: Any, place: str) -> Any:
    if not keys:
        return new
    if isinstance(value, str):
        value = {"name": value}
    if value is not None and not isinstance(value, Mapping):
        word, _, text = place.partition(" ")
        raise RobustCliError(f"{word} '{text}': there is no mapping to set '{keys[0]}' in")
    inner = dict(value or {})
    inner[keys[0]] = _replaced(inner.get(keys[0]), keys[1:], new, place)
    return inner


def _nearest(document: Document, where: Where) -> str:
    """Return the place of a value, or of the innermost written part around it."""
    while where and where not in document.places:
        where = where[:-1]
    return document.places.get(where, "")


def _line(document: Document, where: Where) -> int:
    place = _nearest(document, where)
    return int(place.removeprefix("line ")) if place.startswith("line ") else 0


def located(document: Document, where: Where) -> str:
    """Return line and path of a value, the beginning of a message."""
    place = _nearest(document, where)
    path = ".".join(map(str, where))
    return "".join(f"{part}: " for part in (place, path) if part)
