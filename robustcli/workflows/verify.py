"""Is a stored robust accuracy what it says? Recomputed from weights, images and witnesses, without attacking."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.losses import margin
from robustcli.errors import RobustCliError
from robustcli.evaluation.consistency import Threats, of_counts, of_derived, of_lines
from robustcli.evaluation.evaluate import Result, settled
from robustcli.evaluation.fingerprint import evaluator_text, images_digest
from robustcli.evaluation.per_image import Line, decoded, read_ledger, read_witnesses
from robustcli.evaluation.stored import Dossier
from robustcli.evaluators import Evaluator, looks_of
from robustcli.models.digest import weights_digest
from robustcli.models.find import ModelRequest, find_model
from robustcli.models.model import Model, test_images
from robustcli.registry.registry import instantiate
from robustcli.registry.types import Family
from robustcli.runtime.device import choose_device
from robustcli.specs.check import checked
from robustcli.specs.settings import EvaluateOptions, ThreatSettings
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.files import read_json
from robustcli.store.runs import RunFolder
from robustcli.threat.noise import derive
from robustcli.threat.threat import ThreatModel

# A tie between two logits may fall either way in a batch of another size; relative to the largest logit.
_ROUNDING = 1e-4
# Share of images that most of several forwards may class otherwise the next time, where logits vary.
_BY_CHANCE, _FEW = 0.2, 2
_BATCH = 500


@dataclass(frozen=True)
class Finding:
    """What checking one evaluation came to.

    Args:
        key: its name.
        problems: in words; none where all is as it says.
        checked: what was recomputed.
    """

    key: str
    problems: list[str]
    checked: str


def verify_folder(folder: Path, overrides: Sequence[str], checkpoint: str | None, device: str) -> list[Finding]:
    """Check every evaluation of a run, or of `robust eval`.

    Args:
        folder: of the run, or what `robust eval` stored.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they are not where they were.
        device: auto, cpu, cuda or cuda:i.

    Raises:
        RobustCliError: there is no evaluation to check, or its network or its images cannot be read.
    """
    subject, dossiers = find_evidence(folder, overrides, checkpoint)
    keys = sorted(path.stem for path in dossiers.glob("*.csv"))
    if not keys:
        raise RobustCliError(f"{dossiers}: no ledger (*.csv); nothing to check")
    data = test_images(subject.defaults, choose_device(device))
    network = subject.load(data, choose_device(device)).network
    x, y = data.evaluation("test", None)
    summary = folder / "results.json"
    summed_up: Mapping[str, Any] = read_json(summary)["evaluations"] if summary.is_file() else {}
    findings = []
    for key in dict.fromkeys((*keys, *summed_up)):
        dossier = Dossier(dossiers, key)
        problems, checked = verify(dossier, network, x, y)
        # What people read, and what commands compare, is the summary.
        if summary.is_file() and summed_up.get(key) != read_json(dossier.result):
            problems.append(f"results.json: does not say what {dossier.result.name} says")
        findings.append(Finding(key, problems, checked))
    return findings


def find_evidence(folder: Path, overrides: Sequence[str], checkpoint: str | None) -> tuple[Model, Path]:
    """What the evaluations in a folder are about, and where their dossiers lie.

    Args:
        folder: of a run, or what `robust eval` stored.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they are not where they were.

    Raises:
        RobustCliError: it is neither, or the weights cannot be read.
    """
    files = RunFolder(folder)
    if files.spec.is_file():
        wanted = ModelRequest(text=str(files.best))
    elif files.results.is_file() and "subject" in read_json(files.results):
        stored = read_json(files.results)["subject"]
        wanted = ModelRequest(**{**stored, "overrides": tuple(stored["overrides"])})
    else:
        raise RobustCliError(f"{folder}: neither a run nor what `robust eval` stored: no spec.yaml, no results.json")
    wanted = replace(wanted, text=checkpoint or wanted.text, overrides=(*wanted.overrides, *overrides))
    return find_model(wanted), files.evaluations


def verify(dossier: Dossier, network: nn.Module, x: Tensor, y: Tensor) -> tuple[list[str], str]:
    """Check one evaluation.

    Args:
        dossier: its files.
        network: in eval mode, from the weights that it is said to be about.
        x, y: all test images that it may be about, and their labels, on the network's device.

    Returns:
        Every problem found, in words, and what was checked.

    Raises:
        RobustCliError: a file is missing or cannot be read.
    """
    if not dossier.result.is_file():
        raise RobustCliError(f"{dossier.result}: no such file; an evaluation that is done has one")
    stored = read_json(dossier.result)
    result = Result.from_json(stored, str(dossier.result))
    evaluator = _evaluator_of(result, str(dossier.result))
    lines = read_ledger(dossier.ledger)
    if result.total > len(x):
        return [f"{result.total} images were evaluated; the data have {len(x)}"], "nothing"
    x, y = x[: result.total], y[: result.total]
    threats = _threats_of(result, str(dossier.result))
    looks = looks_of(evaluator)
    problems = list(_of_fingerprint(result, stored, network, x, y))
    problems += of_counts(result, lines)
    problems += of_derived(result, stored)
    problems += of_lines(lines, threats, is_random=looks > 1)
    if len(lines) == result.total:
        with settled(network, x.device.type):
            # A network that draws noise gets the same verdict every time.
            torch.manual_seed(derive(result.seed, "verify"))
            problems += _of_clean_images(lines, network, x, y, looks)
            if dossier.witnesses.exists():
                problems += _of_witnesses(dossier, lines, network, x, y, threats, looks)
    broken = sum(line.broken_by not in ("", "clean") for line in lines)
    words = f"{result.total} clean predictions, counts and interval"
    if looks > 1:
        words += f" (logits vary from call to call, and {_BY_CHANCE:.0%} of the images may differ by chance)"
    if dossier.witnesses.exists() or not broken:
        return problems, f"{words}, {broken} adversarial images"
    return problems, f"{words}; no adversarial images were kept (--witnesses), so {broken} breaks are taken on trust"


def _evaluator_of(result: Result, source: str) -> Evaluator:
    family = Family("evaluators", EvaluateOptions)
    wish = {"name": result.evaluator, **_with_numbers(result.parameters)}
    evaluator: Evaluator = instantiate(checked(lambda checker: checker.chosen(family, wish, ("parameters",)), source))
    return evaluator


def _with_numbers(value: Any) -> Any:
    """Plain values with exact numbers, which JSON keeps as text, read as a spec reads them."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    number = parse_scalar(value) if isinstance(value, str) else value
    return number if isinstance(number, int | float) else value


def _threats_of(result: Result, source: str) -> Threats:
    """The threat of every stage by its name: that of the evaluation, where it has none of its own."""
    main = _threat(result.norm, result.eps, source)
    own = {stage.name: stage.threat.partition(" ") for stage in result.stages if stage.threat}
    return defaultdict(lambda: main, {name: _threat(norm, eps, source) for name, (norm, _, eps) in own.items()})


def _threat(norm: str, eps: str, source: str) -> ThreatModel:
    stated = {"norm": norm, "eps": parse_scalar(eps)}
    settings = checked(lambda checker: checker.settings(ThreatSettings, stated, ()), source)
    return ThreatModel(settings.norm, Fraction(settings.eps))


def _of_fingerprint(
    result: Result, stored: Mapping[str, Any], network: nn.Module, x: Tensor, y: Tensor
) -> Iterator[str]:
    said = stored.get("fingerprint")
    if not isinstance(said, Mapping):
        yield "fingerprint: the result has none"
        return
    for name, found in (("weights", weights_digest(network)), ("images", images_digest(x, y))):
        if said.get(name) != found:
            yield f"{name}: the evaluation was of {str(said.get(name))[:12]}, these are {found[:12]}"
    for name, stated in (
        ("threat", f"{result.norm} {result.eps}"),
        ("seed", str(result.seed)),
        ("evaluator", evaluator_text(result.evaluator, result.parameters)),
    ):
        if said.get(name) != stated:
            yield f"{name}: the result says {stated}, its fingerprint {said.get(name)}"


def _of_clean_images(lines: list[Line], network: nn.Module, x: Tensor, y: Tensor, looks: int) -> Iterator[str]:
    labels = torch.tensor([line.label for line in lines], device=x.device)
    said = torch.tensor([line.clean for line in lines], device=x.device)
    swapped = (labels != y).nonzero().flatten()
    if len(swapped):
        yield f"labels: {len(swapped)} differ from those of the data, first of image {int(swapped[0])}"
    odd = []
    for start in range(0, len(x), _BATCH):
        scores, slack = _scores(network, x[start : start + _BATCH], looks)
        classes = said[start : start + _BATCH]
        known = classes.clamp(0, scores.shape[1] - 1)
        behind = scores.amax(1) - scores.gather(1, known[:, None]).squeeze(1)
        # Not "greater than": a NaN is odd.
        odd += (start + (~(behind <= slack) | (known != classes)).nonzero().flatten()).tolist()
    if len(odd) > _by_chance(len(x), looks):
        yield f"clean predictions: {len(odd)} differ from those of this network, first of image {odd[0]}"
    for line in lines:
        if (line.clean != line.label) != (line.broken_by == "clean"):
            yield f"ledger: image {line.image} is '{line.broken_by}', with label {line.label} and class {line.clean}"
            return


def _scores(network: nn.Module, x: Tensor, looks: int) -> tuple[Tensor, Tensor]:
    """What decides the class of images (n, k), and how far (n,) rounding may shift it: logits, or votes of several."""
    with torch.no_grad():
        logits: Tensor = network(x)
        if looks == 1:
            return logits, _ROUNDING * logits.abs().amax(1)
        votes = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        for _ in range(looks - 1):
            votes += torch.nn.functional.one_hot(network(x).argmax(1), logits.shape[1])
    return votes.to(x.dtype), torch.zeros(len(x), dtype=x.dtype, device=x.device)


def _by_chance(images: int, looks: int) -> int:
    """How many of so many images may come out otherwise than when they were evaluated."""
    return max(_FEW, int(_BY_CHANCE * images)) if looks > 1 else 0


def _of_witnesses(
    dossier: Dossier,
    lines: list[Line],
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threats: Threats,
    looks: int,
) -> Iterator[str]:
    claimed = {line.image for line in lines if line.broken_by not in ("", "clean")}
    own = {line.image: threats[line.broken_by] for line in lines}
    seen: list[int] = []
    outside: list[int] = []
    right: list[int] = []
    for encoding, numbers, codes in read_witnesses(dossier.witnesses):
        if len(numbers) != len(codes) or codes.shape[1:] != tuple(x.shape[1:]):
            yield f"witnesses: {len(codes)} of {codes.shape[1:]} for {len(numbers)} images of {tuple(x.shape[1:])}"
            return
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(x):
            yield f"witnesses: of images {int(numbers.min())} to {int(numbers.max())}; there are {len(x)}"
            return
        seen += numbers.tolist()
        for start in range(0, len(numbers), _BATCH):
            rows = torch.from_numpy(numbers[start : start + _BATCH]).to(x.device)
            points = decoded(encoding, codes[start : start + _BATCH], x[rows])
            for threat in {own[number] for number in rows.tolist()}:
                is_under = torch.tensor([own[number] == threat for number in rows.tolist()], device=x.device)
                outside += rows[is_under & ~threat.contains(points, x[rows])].tolist()
            scores, slack = _scores(network, points, looks)
            right += rows[~(margin(scores, y[rows]) >= -slack)].tolist()
    for words, images, allowed in (
        (f"lie outside {', '.join(map(str, dict.fromkeys(own.values())))} or the pixel box", outside, 0),
        ("do not fool the network", right, _by_chance(len(seen), looks)),
    ):
        if len(images) > allowed:
            yield f"witnesses: {len(images)} {words}, first of image {min(images)}"
    if len(set(seen)) < len(seen):
        yield f"witnesses: {len(seen) - len(set(seen))} images have more than one"
    if missing := claimed - set(seen):
        yield f"witnesses: {len(missing)} broken images have none, first image {min(missing)}"
    if surplus := set(seen) - claimed:
        yield f"witnesses: {len(surplus)} are of images that are not broken, first of image {min(surplus)}"
