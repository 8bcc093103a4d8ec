"""Recompute one stored evaluation from weights, images and adversarial examples, without attacking."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.losses import margin
from robustcli.data.images import Images
from robustcli.evaluation.confirm import votes_for
from robustcli.evaluation.consistency import Threats, check_counts, check_derived, check_lines
from robustcli.evaluation.fingerprint import evaluator_text, images_digest, in_present_names
from robustcli.evaluation.per_image import ImageResult, decoded, read_adversarial_examples, read_per_image
from robustcli.evaluation.restore import settled
from robustcli.evaluators import Evaluator, chunks
from robustcli.models.digest import weights_digest
from robustcli.registry.registry import instantiate
from robustcli.specs.check import checked_member, checked_settings, with_leaves
from robustcli.specs.settings import EVALUATOR, ThreatSettings
from robustcli.specs.yamlfile import parse_scalar
from robustcli.store.evaluation_files import EvaluationFiles
from robustcli.store.evaluations import Evaluation, parse_evaluation
from robustcli.store.files import read_json
from robustcli.threat.noise import derive
from robustcli.threat.threat import ThreatModel

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
        is_recomputed: whether weights and images were there, so that predictions were computed again.
    """

    key: str
    problems: list[str]
    checked: str
    unchecked: list[str] = field(default_factory=list)
    is_recomputed: bool = True


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
    wish = {"name": result.evaluator, **with_leaves(result.parameters, _number)}
    evaluator: Evaluator = instantiate(checked_member(EVALUATOR, wish, ("parameters",), source))
    return evaluator


def _number(value: Any) -> Any:
    """A plain value, parsed as in a spec if it is a number as text."""
    number = parse_scalar(value) if isinstance(value, str) else value
    return number if isinstance(number, int | float) else value


def threats_of(result: Evaluation, source: str) -> Threats:
    """Threat of every stage by its name: its own, or that of the evaluation."""
    main = _threat(result.norm, result.eps, source)
    own = {stage.name: stage.threat.partition(" ") for stage in result.stages if stage.threat}
    return defaultdict(lambda: main, {name: _threat(norm, eps, source) for name, (norm, _, eps) in own.items()})


def _threat(norm: str, eps: str, source: str) -> ThreatModel:
    settings = checked_settings(ThreatSettings, {"norm": norm, "eps": parse_scalar(eps)}, (), source)
    return ThreatModel(settings.norm, settings.eps)


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
    for rows, scores, slack in _scored(network, x, votes):
        classes = said[rows]
        known = classes.clamp(0, scores.shape[1] - 1)
        behind = scores.amax(1) - scores.gather(1, known[:, None]).squeeze(1)
        # Written so that NaN is reported.
        odd += (rows.start + (~(behind <= slack) | (known != classes)).nonzero().flatten()).tolist()
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
        for rows, scores, slack in _scored(network, x, votes):
            lead = -margin(scores, y[rows])
            is_odd = lived[rows] & ~(lead >= -slack)
            if result.is_clean:
                is_odd |= ~lived[rows] & ~(lead <= slack)
            odd += (rows.start + is_odd.nonzero().flatten()).tolist()
    if len(odd) > _by_chance(len(x), votes):
        yield f"survivors: {len(odd)} do not fit the clean predictions of this network, first image {odd[0]}"


def _scored(network: nn.Module, x: Images, votes: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield batches of images with their scores and rounding errors."""
    for rows in chunks(len(x), _BATCH):
        yield rows, *_scores(network, x[rows], votes)


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
        for part in chunks(len(numbers), _BATCH):
            rows = torch.from_numpy(numbers[part]).to(x.device)
            clean = x[rows]
            points = decoded(encoding, codes[part], clean)
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
