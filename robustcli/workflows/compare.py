"""The story of `robust compare`: two results on the same images -> what can be claimed of their difference."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.wording import describe
from robustcli.statistics import clopper_pearson, mcnemar, paired_difference, smallest_excess
from robustcli.store.files import read_json
from robustcli.store.runs import SCHEMA

LEVEL = 0.05
# Of an evaluation's settings, the one that changes memory and speed but, noise apart, no number.
_SILENT = "batch_size"
_NEEDED = {"evaluator", "parameters", "norm", "eps", "seed", "survivors", "warnings"}


@dataclass(frozen=True)
class Pair:
    """Two networks under one evaluation, image by image.

    Args:
        evaluations: A's and B's entry in their results, for the words about them.
        both, only_a, only_b, neither: on how many images which of them is right.
        warnings: what a reader of the difference must know.
    """

    evaluations: tuple[Mapping[str, Any], Mapping[str, Any]]
    both: int
    only_a: int
    only_b: int
    neither: int
    warnings: Sequence[str]

    @property
    def total(self) -> int:
        """Images compared."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def correct(self) -> tuple[int, int]:
        """Images on which A, and on which B, is right."""
        return self.both + self.only_a, self.both + self.only_b

    @property
    def p(self) -> float:
        """Of the two being equally accurate: exact McNemar, two-sided."""
        return mcnemar(self.only_a, self.only_b)

    @property
    def difference(self) -> float:
        """Accuracy of A minus accuracy of B, a fraction."""
        return (self.only_a - self.only_b) / self.total

    @property
    def difference_interval(self) -> tuple[float, float]:
        """95 % interval of the difference, over the drawing of the images; holds 0 unless p is below 0.05."""
        return paired_difference(self.only_a, self.only_b, self.total)

    @property
    def smallest_claimable(self) -> float | None:
        """Smallest difference of accuracies with p below 0.05, had they differed on as many of these images."""
        excess = smallest_excess(self.only_a + self.only_b, LEVEL)
        return None if excess is None else excess / self.total

    @property
    def claim(self) -> str:
        """What may be said of the two networks, in words."""
        low, high = self.difference_interval
        if self.p >= LEVEL:
            return (
                f"no difference can be claimed: A - B is {100 * self.difference:+.2f} points "
                f"[{100 * low:+.2f}, {100 * high:+.2f}], p = {self.p:.2g}"
            )
        better = "A" if self.difference > 0 else "B"
        nearest, farthest = sorted((abs(low), abs(high)))
        word = "accurate" if is_clean(*self.evaluations) else "robust"
        return (
            f"{better} is more {word} by {100 * abs(self.difference):.2f} points "
            f"[{100 * nearest:.2f}, {100 * farthest:.2f}], p = {self.p:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; accuracies, differences and their intervals are fractions."""
        sides = {
            side: {
                **{name: found[name] for name in ("evaluator", "parameters", "norm", "eps", "seed")},
                "correct": correct,
                "accuracy": correct / self.total,
                "interval": list(clopper_pearson(correct, self.total)),
            }
            for side, found, correct in zip("ab", self.evaluations, self.correct, strict=True)
        }
        return {
            **sides,
            "total": self.total,
            **{name: getattr(self, name) for name in ("both", "only_a", "only_b", "neither", "difference")},
            "difference_interval": list(self.difference_interval),
            "p": self.p,
            "smallest_claimable": self.smallest_claimable,
            "claim": self.claim,
            "warnings": list(self.warnings),
        }


def compare(a: Path, b: Path, keys: Sequence[str] = ()) -> dict[str, Pair]:
    """Both results image by image, for every evaluation that both have or for those asked for.

    Where one evaluated more images than the other, the first ones are compared, which both have.

    Args:
        a, b: results.json of a run, the folder of a run, or what `robust eval --out` wrote.
        keys: names of evaluations; without any, all that both have.

    Raises:
        RobustCliError: the images or the threats differ, or an evaluation is missing; all of it at once.
    """
    first, second = _read(a), _read(b)
    if first["data"]["digest"] != second["data"]["digest"]:
        raise RobustCliError(
            f"{a} and {b} were evaluated on different images (digests {first['data']['digest'][:12]} and "
            f"{second['data']['digest'][:12]}); only the same images can be compared one by one"
        )
    chosen = tuple(dict.fromkeys(keys)) or tuple(key for key in first["evaluations"] if key in second["evaluations"])
    missing = [
        f"{path}: has no evaluation '{key}'{suggest(key, found['evaluations'])}"
        for key in chosen
        for path, found in ((a, first), (b, second))
        if key not in found["evaluations"]
    ]
    if not chosen:
        missing = [
            f"{a} and {b} have no evaluation in common: {', '.join(first['evaluations']) or 'none'} in the one, "
            f"{', '.join(second['evaluations']) or 'none'} in the other"
        ]
    if missing:
        raise RobustCliError("\n".join(missing))
    pairs = {key: (first["evaluations"][key], second["evaluations"][key]) for key in chosen}
    unequal = {key: pair for key, pair in pairs.items() if not is_clean(*pair) and _threat(pair[0]) != _threat(pair[1])}
    if unequal:
        shown = "; ".join(
            f"{key}: {threat_words(one)} in A, {threat_words(other)} in B" for key, (one, other) in unequal.items()
        )
        rest = [key for key in pairs if key not in unequal]
        hint = f"; the others can be compared: --key {' --key '.join(rest)}" if rest else ""
        raise RobustCliError(f"{a} and {b} were evaluated under different threats ({shown}){hint}")
    return {key: _pair(*pair) for key, pair in pairs.items()}


def _read(path: Path) -> dict[str, Any]:
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        kind = "this folder holds no results.json: no finished run" if path.is_dir() else "no such file"
        raise RobustCliError(f"{path}: {kind}; expected a finished run, or a file of `robust eval --out`")
    wrong = f"{file}: not results of `robust train` or `robust eval --out`"
    try:
        found = read_json(file)
    except UnicodeDecodeError as error:
        raise RobustCliError(f"{wrong}: not text") from error
    if not isinstance(found, Mapping) or not all(isinstance(found.get(k), Mapping) for k in ("evaluations", "data")):
        raise RobustCliError(wrong)
    if found.get("schema") != SCHEMA:
        raise RobustCliError(f"{file}: results of schema {found.get('schema')}; this version reads schema {SCHEMA}")
    for key, evaluation in found["evaluations"].items():
        if not isinstance(evaluation, Mapping) or not evaluation.keys() >= _NEEDED or "digest" not in found["data"]:
            raise RobustCliError(f"{wrong}: evaluations.{key} is not complete")
        if not re.fullmatch("[01]+", str(evaluation["survivors"])):
            raise RobustCliError(f"{file}: evaluations.{key}.survivors: expected a 0 or a 1 for every image")
    return dict(found)


def _pair(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pair:
    total = min(len(a["survivors"]), len(b["survivors"]))
    counts = {"11": 0, "10": 0, "01": 0, "00": 0}
    for one, other in zip(a["survivors"][:total], b["survivors"][:total], strict=True):
        counts[one + other] += 1
    warnings = []
    if len(a["survivors"]) != len(b["survivors"]):
        warnings.append(
            f"A has {len(a['survivors'])} images and B {len(b['survivors'])}; the first {total} are compared"
        )
    if differing := list(_differences(a, b)):
        warnings.append(
            f"evaluated differently ({'; '.join(differing)}): part of the difference may be the evaluation's, "
            "not the networks'"
        )
    warnings += [f"{side}: {text}" for side, found in (("A", a), ("B", b)) for text in found["warnings"]]
    return Pair((a, b), counts["11"], counts["10"], counts["01"], counts["00"], warnings)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Settings in which two evaluations of one name differ, in words."""
    if a["evaluator"] != b["evaluator"]:
        yield f"{describe(a)} in A, {describe(b)} in B"
        return
    settings = dict(_flat(a["parameters"])), dict(_flat(b["parameters"]))
    for name in dict.fromkeys((*settings[0], *settings[1])):
        if name.rpartition(".")[2] == _SILENT:
            continue
        one, other = (found.get(name, "not set") for found in settings)
        if one != other:
            yield f"{name} {_plain(one)} in A, {_plain(other)} in B"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
        return
    for key, item in items:
        yield from _flat(item, f"{name}.{key}".lstrip("."))


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def is_clean(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(evaluation["evaluator"] == "clean" for evaluation in (a, b))


def _threat(evaluation: Mapping[str, Any]) -> tuple[str, Fraction, frozenset[str]]:
    own = frozenset(stage["threat"] for stage in evaluation.get("stages", ()) if stage.get("threat"))
    return evaluation["norm"], Fraction(evaluation["eps"]), own - {threat_words(evaluation)}


def threat_words(evaluation: Mapping[str, Any]) -> str:
    return f"{evaluation['norm']} {evaluation['eps']}"
