"""Is a stored robust accuracy what it says? Recomputed from weights, images and witnesses, without attacking."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.build import choose_device, load_data
from robustcli.dossier import Dossier
from robustcli.errors import RobustCliError
from robustcli.evaluation import settled
from robustcli.fingerprint import images_digest, weights_digest
from robustcli.judgement import judged
from robustcli.ledger import Line, decoded, read_ledger, read_witnesses
from robustcli.naming import Wanted, find_subject
from robustcli.runs import RunFolder, read_json
from robustcli.statistics import clopper_pearson
from robustcli.subject import Subject
from robustcli.threat import ThreatModel

# A tie between two logits may fall either way in a batch of another size; relative to the largest logit.
_ROUNDING = 1e-4
_BATCH = 500
# What sums over the pixels of large images may lose in single precision: a share of the radius, and beside it.
_OVERSHOOT, _BESIDE = 1e-2, 1e-5


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
    data = load_data(subject.terms.data, choose_device(device))
    network = subject.build(data, choose_device(device)).network
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


def find_evidence(folder: Path, overrides: Sequence[str], checkpoint: str | None) -> tuple[Subject, Path]:
    """What the evaluations in a folder are about, and where their dossiers lie.

    Args:
        folder: of a run, or what `robust eval` stored.
        overrides: dotted overrides, such as data.root=PATH.
        checkpoint: the weights, if they are not where they were.

    Raises:
        RobustCliError: it is neither, or the weights cannot be read.
    """
    if (folder / "spec.yaml").is_file():
        wanted = Wanted(text=str(RunFolder(folder).best))
        dossiers = folder / "evaluations"
    elif (folder / "results.json").is_file() and "subject" in read_json(folder / "results.json"):
        stored = read_json(folder / "results.json")["subject"]
        wanted = Wanted(**{**stored, "overrides": tuple(stored["overrides"])})
        dossiers = folder
    else:
        raise RobustCliError(f"{folder}: neither a run nor what `robust eval` stored: no spec.yaml, no results.json")
    wanted = replace(wanted, text=checkpoint or wanted.text, overrides=(*wanted.overrides, *overrides))
    return find_subject(wanted), dossiers


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
    result = read_json(dossier.result)
    lines = read_ledger(dossier.ledger)
    total = len(result["survivors"])
    if total > len(x):
        return [f"{total} images were evaluated; the data have {len(x)}"], "nothing"
    x, y = x[:total], y[:total]
    threat = ThreatModel(result["norm"], Fraction(result["eps"]))
    problems = list(_of_fingerprint(result, network, x, y))
    problems += _of_counts(result, lines)
    problems += _of_judgement(result)
    problems += _of_lines(lines, threat)
    if len(lines) == total:
        with settled(network, x.device.type):
            problems += _of_clean_images(lines, network, x, y)
            if dossier.witnesses.exists():
                problems += _of_witnesses(dossier, lines, network, x, y, threat)
    broken = sum(line.broken_by not in ("", "clean") for line in lines)
    words = f"{total} clean predictions, counts and interval"
    if dossier.witnesses.exists() or not broken:
        return problems, f"{words}, {broken} adversarial images"
    return problems, f"{words}; no adversarial images were kept (--witnesses), so {broken} breaks are taken on trust"


def _of_fingerprint(result: Mapping[str, Any], network: nn.Module, x: Tensor, y: Tensor) -> Iterator[str]:
    for name, found in (("weights", weights_digest(network)), ("images", images_digest(x, y))):
        said = result["fingerprint"][name]
        if said != found:
            yield f"{name}: the evaluation was of {said[:12]}, these are {found[:12]}"
    for name, stated in (("threat", f"{result['norm']} {result['eps']}"), ("seed", str(result["seed"]))):
        said = result["fingerprint"][name]
        if said != stated:
            yield f"{name}: the result says {stated}, its fingerprint {said}"


def _of_counts(result: Mapping[str, Any], lines: list[Line]) -> Iterator[str]:
    """Whether result and ledger say the same, and what follows from it."""
    survivors = "".join("1" if line.broken_by == "" else "0" for line in lines)
    if [line.image for line in lines] != list(range(len(lines))):
        yield "ledger: the images are not numbered 0, 1, 2, ..."
    if survivors != result["survivors"]:
        pairs = zip(survivors, result["survivors"], strict=False)
        first = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(lines), len(survivors)))
        yield f"survivors: the ledger and the result differ, first at image {first}"
    correct, total = survivors.count("1"), len(lines)
    expected = {
        "correct": correct,
        "total": total,
        "accuracy": correct / total if total else None,
        "interval": list(clopper_pearson(correct, total)) if total else None,
    }
    for name, value in expected.items():
        if result[name] != value:
            yield f"{name}: the result says {result[name]}, the ledger gives {value}"
    broken = Counter(line.broken_by for line in lines)
    left = total - broken["clean"]
    for stage in result["stages"]:
        if (stage["entered"], stage["broken"]) != (left, broken[stage["name"]]):
            yield (
                f"{stage['name']}: the result says {stage['broken']} broken of {stage['entered']}, the ledger "
                f"{broken[stage['name']]} of {left}"
            )
        left -= broken[stage["name"]]
    known = {"", "clean", *(stage["name"] for stage in result["stages"])}
    for name in sorted(set(broken) - known):
        yield f"ledger: {broken[name]} images are broken by '{name}', which is no stage of the result"


def _of_judgement(result: Mapping[str, Any]) -> Iterator[str]:
    """Whether what is said of the number follows from what is known of it."""
    stages = result["stages"]
    expected = {
        "eps_value": float(Fraction(result["eps"])),
        "verdict": "SUSPECT" if result["suspicions"] else "TRUSTED",
        "is_upper_bound": bool(stages)
        and not any(stage["is_black_box"] or stage.get("has_black_box") for stage in stages),
        "gradients": sum(stage["gradients"] for stage in stages),
    }
    for name, value in expected.items():
        if result[name] != value:
            yield f"{name}: the result says {result[name]}, what it is made of gives {value}"
    clean = result["forwards"] - sum(stage["forwards"] for stage in stages)
    # Clean images take one forward each, or several equal looks.
    if clean <= 0 or clean % len(result["survivors"]):
        yield f"forwards: the result says {result['forwards']}, of which stages and clean images leave {clean}"


def _of_lines(lines: list[Line], threat: ThreatModel) -> Iterator[str]:
    """Whether prediction and size of every image are such as its fate allows; margins are taken on trust."""
    farthest = threat.radius * (1 + _OVERSHOOT) + _BESIDE
    for line in lines:
        if line.broken_by in ("", "clean"):
            is_odd = line.prediction != line.clean or line.size != 0
        else:
            # Comparisons with NaN are false, so a NaN size is odd.
            is_odd = line.prediction == line.label or not 0 < line.size <= farthest
        if is_odd:
            yield (
                f"ledger: image {line.image} is '{line.broken_by}', with label {line.label}, prediction "
                f"{line.prediction} and size {line.size:g} where {threat.radius:g} is allowed"
            )
            return


def _of_clean_images(lines: list[Line], network: nn.Module, x: Tensor, y: Tensor) -> Iterator[str]:
    labels = torch.tensor([line.label for line in lines], device=x.device)
    said = torch.tensor([line.clean for line in lines], device=x.device)
    swapped = (labels != y).nonzero().flatten()
    if len(swapped):
        yield f"labels: {len(swapped)} differ from those of the data, first of image {int(swapped[0])}"
    odd = _disagreeing(network, x, said)
    if len(odd):
        yield f"clean predictions: {len(odd)} differ from those of this network, first of image {odd[0]}"
    for line in lines:
        if (line.clean != line.label) != (line.broken_by == "clean"):
            yield f"ledger: image {line.image} is '{line.broken_by}', with label {line.label} and class {line.clean}"
            return


def _disagreeing(network: nn.Module, x: Tensor, said: Tensor) -> list[int]:
    """Images whose class is not the one said, by more than rounding."""
    found = []
    for start in range(0, len(x), _BATCH):
        with torch.no_grad():
            logits = network(x[start : start + _BATCH])
        claimed = said[start : start + _BATCH].clamp(0, logits.shape[1] - 1)
        behind = logits.amax(1) - logits.gather(1, claimed[:, None]).squeeze(1)
        odd = behind > _ROUNDING * logits.abs().amax(1)
        odd |= claimed != said[start : start + _BATCH]
        found += (start + odd.nonzero().flatten()).tolist()
    return found


def _of_witnesses(
    dossier: Dossier, lines: list[Line], network: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel
) -> Iterator[str]:
    claimed = {line.image for line in lines if line.broken_by not in ("", "clean")}
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
            outside += rows[~threat.contains(points, x[rows])].tolist()
            right += rows[judged(network, points, y[rows], 1).predictions == y[rows]].tolist()
    for words, images in (
        (f"lie outside {threat} or the pixel box", outside),
        ("do not fool the network", right),
    ):
        if images:
            yield f"witnesses: {len(images)} {words}, first of image {min(images)}"
    if len(set(seen)) < len(seen):
        yield f"witnesses: {len(seen) - len(set(seen))} images have more than one"
    if missing := claimed - set(seen):
        yield f"witnesses: {len(missing)} broken images have none, first image {min(missing)}"
    if surplus := set(seen) - claimed:
        yield f"witnesses: {len(surplus)} are of images that are not broken, first of image {min(surplus)}"
