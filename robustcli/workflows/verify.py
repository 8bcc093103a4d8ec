"""`robust verify`: recompute stored accuracies from weights, images and adversarial examples, without attacking."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.losses import margin
from robustcli.data.images import Images
from robustcli.data.splits import Data
from robustcli.errors import RobustCliError
from robustcli.evaluation.confirm import votes_for
from robustcli.evaluation.consistency import Threats, check_counts, check_derived, check_lines
from robustcli.evaluation.evaluate import settled
from robustcli.evaluation.fingerprint import evaluator_text, images_digest, in_present_names
from robustcli.evaluation.per_image import ImageResult, decoded, read_adversarial_examples, read_per_image
from robustcli.evaluation.stored import EvaluationFiles
from robustcli.evaluators import Evaluator
from robustcli.models.digest import weights_digest
from robustcli.models.find import ModelRequest, find_model
from robustcli.models.model import LoadedModel, Model, test_images
from robustcli.registry.registry import instantiate
from robustcli.registry.types import Family
from robustcli.runtime.device import choose_device
from robustcli.specs.check import checked
from robustcli.specs.settings import EvaluateOptions, ThreatSettings
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.chain import RESULTS
from robustcli.store.evaluations import Evaluation, parse_evaluation, upgraded_evaluation
from robustcli.store.files import read_json
from robustcli.store.results import Chain, EvalResults, Results, RunResults, read_results
from robustcli.store.runs import RunFolder
from robustcli.threat.noise import derive
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.verify_results import of_chain, of_data, of_eval, of_provenance, of_run

# Tolerance of logits for rounding in batches of another size, relative to the largest logit.
_ROUNDING = 1e-4
# If logits vary: share and minimum number of images whose majority class may differ next time.
_BY_CHANCE, _FEW = 0.2, 2
_BATCH = 500


@dataclass(frozen=True)
class Finding:
    """Outcome of checking one evaluation.

    Args:
        key: its name.
        problems: one line each; empty if the evaluation is verified.
        checked: list of recomputed values.
        unchecked: values that cannot be checked without attacking, or because files are missing.
    """

    key: str
    problems: list[str]
    checked: str
    unchecked: list[str] = field(default_factory=list)


def verify_folder(folder: Path, overrides: Sequence[str], checkpoint: str | None, device: str) -> list[Finding]:
    """Check every evaluation of a run, or of `robust eval`, and results.json with its digest chain.

    Args:
        folder: folder of a run, or stored by `robust eval`.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they have moved.
        device: auto, cpu, cuda or cuda:i.

    Raises:
        RobustCliError: there is no evaluation to check, or its network or its images cannot be read.
    """
    files = RunFolder(folder.parent if folder.name == RESULTS and folder.is_file() else folder)
    # results.json is checked too, because users and other commands read it.
    results = read_results(files.results) if files.is_finished else None
    stated = read_json(files.results) if files.is_finished else {}
    if isinstance(results, RunResults) and checkpoint is None and not files.best.is_file():
        return list(_of_numbers(files, results, stated))
    model, evaluations = find_evidence(files.path, overrides, checkpoint)
    keys = sorted({path.stem for kind in ("*.csv", "*.json") for path in evaluations.glob(kind)})
    keys = list(dict.fromkeys((*keys, *(results.evaluations if results else ()))))
    if not keys:
        raise RobustCliError(f"{evaluations}: found no results and no per-image results (*.csv); nothing to check")
    data = test_images(model.defaults, choose_device(device))
    loaded = model.load(data, choose_device(device))
    known = {key: _stored(EvaluationFiles(evaluations, key), stated) for key in keys}
    count = max(parse_evaluation(raw, evaluations / f"{key}.json").total for key, raw in known.items())
    x, y = data.images("test", min(count, data.sizes.test))
    findings = []
    for key in keys:
        own = EvaluationFiles(evaluations, key)
        finding = verify(own, loaded.network, x, y, known[key])
        if results is not None and upgraded_evaluation(stated["evaluations"].get(key)) != upgraded_evaluation(
            known[key]
        ):
            finding.problems.append(f"results.json: differs from {own.result.name}")
        findings.append(finding)
    if results is None:
        return [*findings, Finding(RESULTS, [], "", ["status, settings and digest chain: the run is not finished"])]
    return [*findings, _of_results(files, results, stated, model, loaded, data)]


def _stored(files: EvaluationFiles, stated: Mapping[str, Any]) -> Any:
    """Content of an evaluation's own file, or of its part of results.json where only that was kept."""
    return read_json(files.result) if files.folder.is_dir() else stated["evaluations"][files.key]


def _of_numbers(files: RunFolder, results: RunResults, stated: Mapping[str, Any]) -> Iterator[Finding]:
    """Check results without their weights: only that the numbers of every evaluation are consistent."""
    for key, result in results.evaluations.items():
        problems = list(check_derived(result, stated["evaluations"][key]))
        lines = EvaluationFiles(files.evaluations, key).per_image
        if lines.is_file():
            problems += check_counts(result, read_per_image(lines))
        yield Finding(key, problems, "counts, accuracy and interval", ["weights, images, predictions and attacks"])
    problems = list(of_provenance(files, results))
    unchecked: list[str] = []
    if results.chain is not None and files.spec.is_file():
        # Without the weights, only the rest can be compared.
        broken, unchecked = of_chain(files, results, stated, results.chain.links.get("weights", ""))
        problems += broken
    where = files.best.relative_to(files.path)
    unchecked.append(f"what follows from the weights and the images: there is no {where}; --checkpoint names it")
    yield Finding(RESULTS, problems, "record of the data", unchecked)


def _of_results(
    files: RunFolder, results: Results, stated: Mapping[str, Any], model: Model, loaded: LoadedModel, data: Data
) -> Finding:
    """Check results.json itself: the digest chain, and everything that follows from the other files."""
    problems, unchecked = of_chain(files, results, stated, weights_digest(loaded.network))
    if data.is_whole or (isinstance(results, EvalResults) and results.chain is not None):
        problems += of_data(results, data)
    else:
        unchecked.append("data: digest of the training images, which are not read here")
    if isinstance(results, EvalResults):
        problems += of_eval(results, stated, model, loaded)
        unchecked.append("subject and provenance: how the user named the network, and the session")
    elif files.spec.is_file():
        problems += of_run(files, results, model)
        if not files.last.is_file():
            unchecked.append(f"status, collapsed_at and precision: there is no {files.last.relative_to(files.path)}")
    words = "settings, status, data and digest chain" if results.chain else "settings, status and data"
    return Finding(RESULTS, problems, words, unchecked)


def chain_in(folder: Path) -> Chain:
    """Digest chain of the results in a folder.

    Raises:
        RobustCliError: there is none, so nothing can be signed.
    """
    chain = read_results(RunFolder(folder).results).chain
    if chain is None:
        raise RobustCliError(f"{folder}: the results have no digest chain to sign; evaluate again to get one")
    return chain


def find_evidence(folder: Path, overrides: Sequence[str], checkpoint: str | None) -> tuple[Model, Path]:
    """Find the network that the evaluations in a folder are about, and the folder of their files.

    Args:
        folder: folder of a run, or stored by `robust eval`.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they have moved.

    Raises:
        RobustCliError: it is neither, or the weights cannot be read.
    """
    files = RunFolder(folder)
    stored = read_results(files.results) if files.results.is_file() else None
    if files.spec.is_file():
        wanted = ModelRequest(text=str(files.best))
    elif isinstance(stored, EvalResults):
        source = stored.subject
        wanted = ModelRequest(**{**source.to_json(), "overrides": tuple(source.overrides)})
    else:
        raise RobustCliError(
            f"{folder}: found no spec.yaml and no results.json of `robust eval`; expected the folder of a run or of "
            "an evaluation"
        )
    wanted = replace(wanted, text=checkpoint or wanted.text, overrides=(*wanted.overrides, *overrides))
    return find_model(wanted), files.evaluations


def verify(files: EvaluationFiles, network: nn.Module, x: Images, y: Tensor, stored: Any = None) -> Finding:
    """Check one evaluation.

    Args:
        files: its files.
        network: network in eval mode, with the weights that the evaluation names.
        x, y: at least the test images that were evaluated, and their labels, on the network's device.
        stored: content of the result; None reads its file.

    Raises:
        RobustCliError: a file cannot be read.
    """
    if stored is None:
        stored = read_json(files.result)
    result = parse_evaluation(stored, files.result)
    evaluator = _evaluator_of(result, str(files.result))
    if result.total > len(x):
        return Finding(files.key, [f"{result.total} images were evaluated; the data set has {len(x)}"], "nothing")
    x, y = x.subset(slice(result.total)), y[: result.total]
    threats = threats_of(result, str(files.result))
    votes = votes_for(evaluator, network)
    problems = list(_of_fingerprint(result, network, x, y))
    network = evaluator.network(network)
    if not files.per_image.is_file():
        problems += [*check_derived(result, stored), *_of_survivors(result, network, x, y, votes)]
        missing = f"per-image results and attacks: there is no {files.per_image.name}"
        return Finding(files.key, problems, "fingerprint, clean predictions of the survivors, interval", [missing])
    lines = read_per_image(files.per_image)
    problems += check_counts(result, lines)
    problems += check_derived(result, stored)
    problems += check_lines(lines, threats, is_random=votes > 1)
    if len(lines) == result.total:
        with settled(network, x.device.type):
            # Seeded, so that a network that draws noise gets the same verdict every time.
            torch.manual_seed(derive(result.seed, "verify"))
            problems += _of_clean_images(lines, network, x, y, votes)
            if files.adversarial_examples.exists():
                problems += _of_adversarial_examples(files, lines, network, x, y, threats, votes)
    broken = sum(line.broken_by not in ("", "clean") for line in lines)
    words = f"{result.total} clean predictions, counts and interval"
    if votes > 1:
        words += f" (logits vary from call to call; up to {_BY_CHANCE:.0%} of the images may differ by chance)"
    unchecked = ["forwards, gradients, seconds, suspicions, warnings; network, code and files in the fingerprint"]
    if result.stages:
        unchecked += [
            f"that the attacks ran with these parameters and that none breaks the {result.correct} surviving images",
            "margin and size of the per-image results, apart from sign and radius",
            "sampled, is_black_box, has_black_box and is_search of the stages",
        ]
    if files.adversarial_examples.exists() or not broken:
        return Finding(files.key, problems, f"{words}, {broken} adversarial images", unchecked)
    words += f"; no adversarial images were kept (--save-examples), so {broken} breaks could not be re-checked"
    return Finding(files.key, problems, words, unchecked)


def _evaluator_of(result: Evaluation, source: str) -> Evaluator:
    family = Family("evaluators", EvaluateOptions)
    wish = {"name": result.evaluator, **_with_numbers(result.parameters)}
    evaluator: Evaluator = instantiate(checked(lambda checker: checker.chosen(family, wish, ("parameters",)), source))
    return evaluator


def _with_numbers(value: Any) -> Any:
    """Plain values in which numbers as text are parsed as in a spec."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    number = parse_scalar(value) if isinstance(value, str) else value
    return number if isinstance(number, int | float) else value


def threats_of(result: Evaluation, source: str) -> Threats:
    """Threat of every stage by its name: its own, or that of the evaluation."""
    main = _threat(result.norm, result.eps, source)
    own = {stage.name: stage.threat.partition(" ") for stage in result.stages if stage.threat}
    return defaultdict(lambda: main, {name: _threat(norm, eps, source) for name, (norm, _, eps) in own.items()})


def _threat(norm: str, eps: str, source: str) -> ThreatModel:
    stated = {"norm": norm, "eps": parse_scalar(eps)}
    settings = checked(lambda checker: checker.settings(ThreatSettings, stated, ()), source)
    return ThreatModel(settings.norm, Fraction(settings.eps))


def _of_fingerprint(result: Evaluation, network: nn.Module, x: Images, y: Tensor) -> Iterator[str]:
    said = result.fingerprint
    if said is None:
        yield "fingerprint: the result has none"
        return
    for name, found in (("weights", weights_digest(network)), ("images", images_digest(x, y))):
        if said.get(name) != found:
            yield f"{name}: the evaluation used {str(said.get(name))[:12]}, these are {found[:12]}"
    for name, stated in (
        ("threat", f"{result.norm} {result.eps}"),
        ("seed", str(result.seed)),
        ("evaluator", evaluator_text(result.evaluator, result.parameters)),
    ):
        if said.get(name) != stated:
            words = (in_present_names(str(text)) for text in (stated, said.get(name)))
            yield "{}: the result says {}, its fingerprint {}".format(name, *words)


def _of_clean_images(lines: list[ImageResult], network: nn.Module, x: Images, y: Tensor, votes: int) -> Iterator[str]:
    labels = torch.tensor([line.label for line in lines], device=x.device)
    said = torch.tensor([line.clean for line in lines], device=x.device)
    swapped = (labels != y).nonzero().flatten()
    if len(swapped):
        yield f"labels: {len(swapped)} differ from those of the data, first of image {int(swapped[0])}"
    odd = []
    for start in range(0, len(x), _BATCH):
        scores, slack = _scores(network, x[start : start + _BATCH], votes)
        classes = said[start : start + _BATCH]
        known = classes.clamp(0, scores.shape[1] - 1)
        behind = scores.amax(1) - scores.gather(1, known[:, None]).squeeze(1)
        # Written so that NaN is reported.
        odd += (start + (~(behind <= slack) | (known != classes)).nonzero().flatten()).tolist()
    if len(odd) > _by_chance(len(x), votes):
        yield f"clean predictions: {len(odd)} differ from those of this network, first of image {odd[0]}"
    for line in lines:
        if (line.clean != line.label) != (line.broken_by == "clean"):
            yield (
                f"per-image results: image {line.image} is '{line.broken_by}', with label {line.label} and class "
                f"{line.clean}"
            )
            return


def _of_survivors(result: Evaluation, network: nn.Module, x: Images, y: Tensor, votes: int) -> Iterator[str]:
    """Check that survivors are correct when clean, and without an attack also that the others are not."""
    lived = torch.tensor([letter == "1" for letter in result.survivors], device=x.device)
    odd: list[int] = []
    with settled(network, x.device.type):
        torch.manual_seed(derive(result.seed, "verify"))
        for start in range(0, len(x), _BATCH):
            scores, slack = _scores(network, x[start : start + _BATCH], votes)
            labels, alive = y[start : start + _BATCH], lived[start : start + _BATCH]
            lead = -margin(scores, labels)
            is_odd = alive & ~(lead >= -slack)
            if result.is_clean:
                is_odd |= ~alive & ~(lead <= slack)
            odd += (start + is_odd.nonzero().flatten()).tolist()
    if len(odd) > _by_chance(len(x), votes):
        yield f"survivors: {len(odd)} do not fit the clean predictions of this network, first image {odd[0]}"


def _scores(network: nn.Module, x: Tensor, votes: int) -> tuple[Tensor, Tensor]:
    """Scores (n, k) that decide the class of images, and their rounding error (n,): logits, or votes of forwards."""
    with torch.no_grad():
        logits: Tensor = network(x)
        if votes == 1:
            return logits, _ROUNDING * logits.abs().amax(1)
        counts = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        for _ in range(votes - 1):
            counts += torch.nn.functional.one_hot(network(x).argmax(1), logits.shape[1])
    return counts.to(x.dtype), torch.zeros(len(x), dtype=x.dtype, device=x.device)


def _by_chance(images: int, votes: int) -> int:
    """Number of images whose verdict may differ by chance from that of the evaluation."""
    return max(_FEW, int(_BY_CHANCE * images)) if votes > 1 else 0


def _of_adversarial_examples(
    files: EvaluationFiles,
    lines: list[ImageResult],
    network: nn.Module,
    x: Images,
    y: Tensor,
    threats: Threats,
    votes: int,
) -> Iterator[str]:
    claimed = {line.image for line in lines if line.broken_by not in ("", "clean")}
    own = {line.image: threats[line.broken_by] for line in lines}
    seen: list[int] = []
    outside: list[int] = []
    right: list[int] = []
    for encoding, numbers, codes in read_adversarial_examples(files.adversarial_examples):
        if len(numbers) != len(codes) or codes.shape[1:] != tuple(x.shape[1:]):
            yield (
                f"adversarial examples: found {len(codes)} of shape {codes.shape[1:]}; expected {len(numbers)} of "
                f"{tuple(x.shape[1:])}"
            )
            return
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(x):
            yield (f"adversarial examples: of images {int(numbers.min())} to {int(numbers.max())}; there are {len(x)}")
            return
        seen += numbers.tolist()
        for start in range(0, len(numbers), _BATCH):
            rows = torch.from_numpy(numbers[start : start + _BATCH]).to(x.device)
            clean = x[rows]
            points = decoded(encoding, codes[start : start + _BATCH], clean)
            for threat in {own[number] for number in rows.tolist()}:
                is_under = torch.tensor([own[number] == threat for number in rows.tolist()], device=x.device)
                outside += rows[is_under & ~threat.contains(points, clean)].tolist()
            scores, slack = _scores(network, points, votes)
            right += rows[~(margin(scores, y[rows]) >= -slack)].tolist()
    for words, images, allowed in (
        (f"lie outside {', '.join(map(str, dict.fromkeys(own.values())))} or the pixel box", outside, 0),
        ("do not fool the network", right, _by_chance(len(seen), votes)),
    ):
        if len(images) > allowed:
            yield f"adversarial examples: {len(images)} {words}, first of image {min(images)}"
    if len(set(seen)) < len(seen):
        yield f"adversarial examples: {len(seen) - len(set(seen))} images have more than one"
    if missing := claimed - set(seen):
        yield f"adversarial examples: {len(missing)} broken images have none, first image {min(missing)}"
    if surplus := set(seen) - claimed:
        yield f"adversarial examples: {len(surplus)} are of images that are not broken, first of image {min(surplus)}"
