"""`robust diff`: list everything in which two results differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustcli.evaluation.per_image import ImageResult, read_per_image
from robustcli.evaluation.wording import first_numbers, interval
from robustcli.specs.yamlfile import flat, plain_text, read_yaml
from robustcli.statistics import mcnemar
from robustcli.store.evaluations import Evaluation
from robustcli.store.provenance import Session
from robustcli.store.results import EvalResults, Results
from robustcli.store.runs import RunFolder
from robustcli.workflows.compare import paired, read_side, setting_differences

# Image numbers listed in a line, and characters of a digest.
_LISTED, _SHORT = 10, 12


@dataclass(frozen=True)
class Section:
    """One subject of the comparison.

    Args:
        name: name, such as "spec", "data" or "evaluation pgd".
        same: text to print if there is no difference.
        differences: one line each.
    """

    name: str
    same: str
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Side:
    """A result with the files next to it."""

    path: Path
    results: Results

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def session(self) -> Session | None:
        """Process that made the result; of a run, the last one."""
        sessions = self.results.sessions(self.folder)
        return sessions[-1] if sessions else None

    @property
    def weights(self) -> str:
        """Digest of the weights; "" if the file does not have it."""
        return self.results.weights_digest or ""

    def per_image(self, key: str) -> list[ImageResult]:
        path = RunFolder(self.folder).evaluation(key).per_image
        return read_per_image(path) if path.is_file() else []


def diff(a: Path, b: Path) -> list[Section]:
    """Compare two results in spec, weights, data, environment, code and every evaluation that both have.

    If both results are about one network, their only attacks are compared, whatever they are called.

    Args:
        a, b: results.json of a run or of `robust eval`, or a folder that has one.

    Raises:
        RobustCliError: one of them cannot be read.
    """
    one, other = _Side(a, read_side(a)), _Side(b, read_side(b))
    pairs = paired(one.results, other.results)
    shared = [key for key in pairs if ":" not in key]
    return [
        Section("spec", "the same", list(_spec(one, other))),
        Section("weights", f"the same ({one.weights[:_SHORT] or 'no digest'})", list(_weights(one, other))),
        Section("data", f"the same images ({one.results.data.digest[:_SHORT]})", list(_data(one, other))),
        Section("environment", "the same", list(_environment(one, other))),
        Section("code", "the same", list(_code(one, other))),
        Section("evaluations", f"the same names: {', '.join(shared)}", list(_names(one, other))),
        *(
            Section(f"evaluation {key}", _agreement(one, names[0]), list(_evaluation(one, other, *names)))
            for key, names in pairs.items()
        ),
    ]


def _between(name: str, one: Any, other: Any) -> Iterator[str]:
    """A line if two values differ."""
    if one != other:
        yield f"{name}: {plain_text(one)} in A, {plain_text(other)} in B"


def _spec(a: _Side, b: _Side) -> Iterator[str]:
    specs = [_described(side) for side in (a, b)]
    if type(a.results) is not type(b.results):
        # A run has its spec, and `robust eval` the digest of that of the checkpoint.
        yield from _between("digest", a.results.spec_digest, b.results.spec_digest)
        yield from _between("threat", str(a.results.threat), str(b.results.threat))
        return
    one, other = (dict(flat(spec)) for spec in specs)
    for name in dict.fromkeys((*one, *other)):
        yield from _between(name, one.get(name, "not set"), other.get(name, "not set"))


def _described(side: _Side) -> Mapping[str, Any]:
    """Return the spec of a run, or for `robust eval` how the network was named."""
    results = side.results
    if isinstance(results, EvalResults):
        seed = {"training_seed": results.training_seed, "threat": str(results.threat)}
        return {"name": results.name, "spec_digest": results.spec_digest, **seed, **results.subject.to_json()}
    path = RunFolder(side.folder).spec
    value = read_yaml(path).value if path.is_file() else None
    return value if isinstance(value, Mapping) else {"digest": results.spec_digest, "seed": results.seed}


def _weights(a: _Side, b: _Side) -> Iterator[str]:
    yield from _between("digest", a.weights[:_SHORT] or "not stored", b.weights[:_SHORT] or "not stored")


def _data(a: _Side, b: _Side) -> Iterator[str]:
    one, other = a.results.data, b.results.data
    yield from _between("digest of the images", one.digest[:_SHORT], other.digest[:_SHORT])
    for split in ("train", "val", "test"):
        yield from _between(f"{split} images", getattr(one.sizes, split), getattr(other.sizes, split))
    yield from _between("decoding", one.decode or "raw pixels", other.decode or "raw pixels")
    yield from _between("additional images", one.extra_digest[:_SHORT] or "none", other.extra_digest[:_SHORT] or "none")


def _environment(a: _Side, b: _Side) -> Iterator[str]:
    one, other = a.session, b.session
    if one is None or other is None:
        yield from _between("provenance", *("missing" if side is None else "stored" for side in (one, other)))
        return
    for name in ("device", "platform", "python"):
        yield from _between(name, getattr(one, name), getattr(other, name))
    for name in dict.fromkeys((*one.versions, *other.versions)):
        if name != "robustcli":
            yield from _between(name, *(side.versions.get(name) or "not installed" for side in (one, other)))


def _code(a: _Side, b: _Side) -> Iterator[str]:
    one, other = a.session, b.session
    if one is not None and other is not None:
        yield from _between("robustcli", one.versions.get("robustcli"), other.versions.get("robustcli"))
        yield from _between("commit", (one.commit or "unknown")[:_SHORT], (other.commit or "unknown")[:_SHORT])
        if one.commit == other.commit and one != other and (one.dirty or other.dirty):
            states = ["modified" if side.dirty else "not modified" for side in (one, other)]
            yield f"code of commit {(one.commit or '')[:_SHORT]}: {states[0]} in A, {states[1]} in B"


def _names(a: _Side, b: _Side) -> Iterator[str]:
    for name, side, rest in (("A", a, b), ("B", b, a)):
        only = [key for key in side.results.evaluations if key not in rest.results.evaluations]
        if only:
            yield f"only in {name}: {', '.join(only)}"


def _agreement(side: _Side, key: str) -> str:
    found = side.results.evaluations[key]
    return f"the same: {interval(found)} % of {found.total} images"


def _evaluation(a: _Side, b: _Side, key: str, other_key: str) -> Iterator[str]:
    one, other = a.results.evaluations[key], b.results.evaluations[other_key]
    yield from setting_differences(one, other)
    yield from _between("threat", str(one.threat), str(other.threat))
    yield from _between("seed", one.seed, other.seed)
    yield from _between("images", one.total, other.total)
    yield from _between("verdict", one.verdict or "none", other.verdict or "none")
    marks = [found.fingerprint or {} for found in (one, other)]
    if all(marks) and marks[0].get("code") != marks[1].get("code"):
        yield "the code that decides which images survive differs"
    if a.results.data.digest != b.results.data.digest:
        yield f"accuracy: {interval(one)} % in A, {interval(other)} % in B, on different images"
        return
    yield from _images(one, other)
    yield from _ways(a.per_image(key), b.per_image(other_key))


def _images(one: Evaluation, other: Evaluation) -> Iterator[str]:
    """Images that only one of the two classifies correctly."""
    total = min(one.total, other.total)
    pairs = list(zip(one.survivors[:total], other.survivors[:total], strict=True))
    only = [[number for number, pair in enumerate(pairs) if pair == wanted] for wanted in (("1", "0"), ("0", "1"))]
    if not any(only):
        if one.total != other.total:
            yield f"the first {total} images have equal outcomes"
        return
    yield f"accuracy: {interval(one)} % in A, {interval(other)} % in B"
    differing = len(only[0]) + len(only[1])
    p = mcnemar(len(only[0]), len(only[1]))
    yield f"{differing} of {total} images have different outcomes, McNemar p = {p:.2g}"
    for name, numbers in zip("AB", only, strict=True):
        if numbers:
            yield f"correct only in {name}: {len(numbers)} ({_listed(numbers)})"


def _ways(one: Sequence[ImageResult], other: Sequence[ImageResult]) -> Iterator[str]:
    """Images that both evaluations break, in different ways."""
    both = [(x, y) for x, y in zip(one, other, strict=False) if x.broken_by and y.broken_by]
    attacks = [x.image for x, y in both if x.broken_by != y.broken_by]
    classes = [x.image for x, y in both if x.prediction != y.prediction]
    if attacks:
        yield f"misclassified at different stages, when clean or by an attack: {len(attacks)} ({_listed(attacks)})"
    if classes:
        yield f"broken into different classes: {len(classes)} ({_listed(classes)})"


def _listed(numbers: Sequence[int]) -> str:
    return f"image{'s' * (len(numbers) > 1)} {first_numbers(numbers, _LISTED)}"
