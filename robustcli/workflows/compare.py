"""`robust compare`: two results on the same images -> what can be claimed about their difference."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.wording import describe, threats_of
from robustcli.specs.yamlfile import flat, plain_text
from robustcli.statistics import clopper_pearson, mcnemar, paired_difference, smallest_excess
from robustcli.store.evaluations import Evaluation
from robustcli.store.results import Results, only_results, read_results

LEVEL = 0.05
# Setting of an evaluation that only changes memory, speed and rounding.
_SILENT = "batch_size"


@dataclass(frozen=True)
class Measurement:
    """Accuracy of one network on the compared images, as fractions."""

    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """Two networks under one evaluation, image by image.

    Args:
        evaluations: evaluations of A and B.
        clean: clean accuracy of A and B on the images of their evaluation, if known.
        is_same_network: whether A and B have the same weights, so that two attacks are compared.
        both, only_a, only_b, neither: number of images that both, only A, only B or none classify correctly.
        warnings: facts that a reader of the difference must know.
    """

    evaluations: tuple[Evaluation, Evaluation]
    clean: tuple[float | None, float | None]
    is_same_network: bool
    both: int
    only_a: int
    only_b: int
    neither: int
    warnings: Sequence[str]

    @property
    def is_clean(self) -> bool:
        """True if nothing was attacked."""
        return all(evaluation.is_clean for evaluation in self.evaluations)

    @property
    def total(self) -> int:
        """Number of images compared."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def correct(self) -> tuple[int, int]:
        """Number of images that A and that B classifies correctly."""
        return self.both + self.only_a, self.both + self.only_b

    @property
    def sides(self) -> tuple[Measurement, Measurement]:
        """Accuracy of A and of B."""
        a, b = (Measurement(count / self.total, clopper_pearson(count, self.total)) for count in self.correct)
        return a, b

    @property
    def p(self) -> float:
        """p-value of the exact two-sided McNemar test that both are equally accurate."""
        return mcnemar(self.only_a, self.only_b)

    @property
    def difference(self) -> float:
        """Accuracy of A minus accuracy of B, as a fraction."""
        return (self.only_a - self.only_b) / self.total

    @property
    def difference_interval(self) -> tuple[float, float]:
        """95 % interval of the difference, over the drawing of the images; contains 0 unless p is below 0.05."""
        return paired_difference(self.only_a, self.only_b, self.total)

    @property
    def smallest_claimable(self) -> float | None:
        """Smallest difference with p below 0.05 if the two differ on as many images as here; None if there is none."""
        excess = smallest_excess(self.only_a + self.only_b, LEVEL)
        return None if excess is None else excess / self.total

    def claim(self, a: str = "A", b: str = "B") -> str:
        """Return one sentence about the two networks, or the two attacks on one, that the data support."""
        suspect = [name for name, found in zip((a, b), self.evaluations, strict=True) if found.verdict == "SUSPECT"]
        doubt = f"; SUSPECT: {' and '.join(suspect)}" if suspect else ""
        return f"{self._claim(a, b)}{doubt}"

    def _claim(self, a: str, b: str) -> str:
        low, high = self.difference_interval
        if self.p >= LEVEL:
            return (
                f"no difference can be claimed: {a} - {b} is {100 * self.difference:+.2f} points "
                f"[{100 * low:+.2f}, {100 * high:+.2f}], p = {self.p:.2g}"
            )
        better, worse = (a, b) if self.difference > 0 else (b, a)
        nearest, farthest = sorted((abs(low), abs(high)))
        if self.is_same_network and not self.is_clean:
            stronger = f"the attack of {worse}" if {a, b} == {"A", "B"} else worse
            return (
                f"{stronger} is stronger by {100 * abs(self.difference):.2f} points "
                f"[{100 * nearest:.2f}, {100 * farthest:.2f}], p = {self.p:.2g}"
            )
        word = "accurate" if self.is_clean else "robust"
        return (
            f"{better} is more {word} by {100 * abs(self.difference):.2f} points "
            f"[{100 * nearest:.2f}, {100 * farthest:.2f}], p = {self.p:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; accuracies, differences and their intervals are fractions."""
        sides = {
            side: {
                **found.model_dump(mode="json", include={"evaluator", "parameters", "norm", "eps", "seed"}),
                "correct": correct,
                "accuracy": measured.accuracy,
                "interval": list(measured.interval),
                "clean_accuracy": clean,
            }
            for side, found, correct, measured, clean in zip(
                "ab", self.evaluations, self.correct, self.sides, self.clean, strict=True
            )
        }
        return {
            **sides,
            "total": self.total,
            "is_same_network": self.is_same_network,
            **{name: getattr(self, name) for name in ("both", "only_a", "only_b", "neither", "difference")},
            "difference_interval": list(self.difference_interval),
            "p": self.p,
            "smallest_claimable": self.smallest_claimable,
            "claim": self.claim(),
            "warnings": list(self.warnings),
        }


def compare(a: Path, b: Path, keys: Sequence[str] = ()) -> dict[str, Pair]:
    """Compare two results image by image, for every evaluation that both have or for the named ones.

    If one evaluated more images than the other, only the first ones, which both have, are compared.

    Args:
        a, b: results.json of a run, the folder of a run, or what `robust eval --out` wrote. They may be the same, to
            compare two attacks on one network.
        keys: names of evaluations, or pairs such as "pgd:autoattack" of an evaluation of A and one of B; if empty, all
            that both have; for one network, also the only attack of each.

    Raises:
        RobustCliError: the images or the threats differ, or an evaluation is missing; all problems at once.
    """
    first, second = read_side(a), read_side(b)
    if first.data.digest != second.data.digest:
        raise RobustCliError(
            f"{a} and {b} were evaluated on different images (digests {first.data.digest[:12]} and "
            f"{second.data.digest[:12]}); only the same images can be compared one by one"
        )
    chosen = {key: _both(key) for key in keys} or paired(first, second)
    missing = [
        f"{path}: has no evaluation '{name}'{suggest(name, found.evaluations)}"
        for names in chosen.values()
        for name, path, found in zip(names, (a, b), (first, second), strict=True)
        if name not in found.evaluations
    ]
    if not chosen:
        missing = [
            f"{a} and {b} have no evaluation in common: found {', '.join(first.evaluations) or 'none'} in A, "
            f"{', '.join(second.evaluations) or 'none'} in B; name a pair, such as --key KEY_OF_A:KEY_OF_B"
        ]
    if missing:
        raise RobustCliError("\n".join(missing))
    pairs = {key: _pair(*names, first, second) for key, names in chosen.items()}
    unequal = {
        key: pair.evaluations
        for key, pair in pairs.items()
        if not pair.is_clean and not have_same_threat(*pair.evaluations)
    }
    if unequal:
        shown = "; ".join(
            f"{key}: {threats_of(one)} in A, {threats_of(other)} in B" for key, (one, other) in unequal.items()
        )
        rest = [key for key in pairs if key not in unequal]
        hint = f"; the others can be compared: --key {' --key '.join(rest)}" if rest else ""
        raise RobustCliError(f"{a} and {b} were evaluated under different threats ({shown}){hint}")
    return pairs


def read_side(path: Path) -> Results:
    """Read results.json of a run or of `robust eval`, or a folder that has one.

    Raises:
        RobustCliError: there is none, or it is damaged or foreign.
    """
    folder = only_results(path)
    file = folder / "results.json" if folder.is_dir() else path
    if re.match("[a-z]+:", str(path)) and not path.exists():
        raise RobustCliError(f"{path}: a model, not results; evaluate it first: robust eval {path} --out FILE.json")
    if not file.is_file():
        found = "found no results.json in this folder" if path.is_dir() else "no such file"
        raise RobustCliError(f"{path}: {found}; expected a finished run, or a file of `robust eval --out`")
    return read_results(file)


def _is_same_network(first: Results, second: Results) -> bool:
    return first.weights_digest is not None and first.weights_digest == second.weights_digest


def _both(key: str) -> tuple[str, str]:
    """Names of the evaluations of A and B: "pgd:autoattack", or one name for both."""
    one, _, other = key.partition(":")
    return one, other or one


def paired(first: Results, second: Results) -> dict[str, tuple[str, str]]:
    """Evaluations that both have; for one network, also the only attacks of both."""
    shared = {key: (key, key) for key in first.evaluations if key in second.evaluations}
    attacks = [[key for key, found in side.evaluations.items() if not found.is_clean] for side in (first, second)]
    if _is_same_network(first, second) and len(attacks[0]) == len(attacks[1]) == 1 and attacks[0] != attacks[1]:
        shared[f"{attacks[0][0]}:{attacks[1][0]}"] = (attacks[0][0], attacks[1][0])
    return shared


def _pair(one: str, other: str, first: Results, second: Results) -> Pair:
    a, b = first.evaluations[one], second.evaluations[other]
    is_same_network = _is_same_network(first, second)
    total = min(a.total, b.total)
    counts = Counter(zip(a.survivors[:total], b.survivors[:total], strict=True))
    warnings = []
    if a.total != b.total:
        warnings.append(f"A has {a.total} images and B {b.total}; the first {total} are compared")
    if differing := list(setting_differences(a, b)):
        reason = "" if is_same_network else ": the difference may come from the evaluations and not from the networks"
        warnings.append(f"evaluated differently ({'; '.join(differing)}){reason}")
    for side, found in (("A", a), ("B", b)):
        warnings += [f"{side}: SUSPECT: {text}" for text in found.suspicions or ()]
        warnings += [f"{side}: {text}" for text in found.warnings]
    return Pair(
        evaluations=(a, b),
        clean=(first.clean_accuracy(one), second.clean_accuracy(other)),
        is_same_network=is_same_network,
        both=counts["1", "1"],
        only_a=counts["1", "0"],
        only_b=counts["0", "1"],
        neither=counts["0", "0"],
        warnings=warnings,
    )


def setting_differences(a: Evaluation, b: Evaluation) -> Iterator[str]:
    """Settings in which two evaluations of one name differ, as text."""
    if a.evaluator != b.evaluator:
        yield f"{describe(a)} in A, {describe(b)} in B"
        return
    settings = dict(flat(a.parameters)), dict(flat(b.parameters))
    for name in dict.fromkeys((*settings[0], *settings[1])):
        if name.rpartition(".")[2] == _SILENT:
            continue
        one, other = (found.get(name, "not set") for found in settings)
        if one != other:
            yield f"{name} {plain_text(one)} in A, {plain_text(other)} in B"


def have_same_threat(one: Evaluation, other: Evaluation) -> bool:
    """Return whether the attacks of two evaluations are under the same threat models."""
    return _threat(one) == _threat(other)


def _threat(evaluation: Evaluation) -> tuple[str, Fraction, frozenset[str]]:
    own = frozenset(stage.threat for stage in evaluation.stages if stage.threat)
    return evaluation.norm, Fraction(evaluation.eps), own - {str(evaluation.threat)}
