"""`robust verify --resample N`: attack stored survivors anew, with another attack and another seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.attack_choice import evaluator_of
from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluation.progress import Report, silent
from robustcli.models.model import test_images
from robustcli.registry.registry import instantiate
from robustcli.runtime.device import choose_device
from robustcli.store.evaluations import Evaluation, read_evaluation
from robustcli.store.runs import RunFolder
from robustcli.threat.noise import derive
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.verify import evaluated_model
from robustcli.workflows.verify_evaluation import threats_of


@dataclass(frozen=True)
class Resampled:
    """Survivors of a stored evaluation under another attack.

    Args:
        text: the outcome in words.
        broken: numbers of the images that the attack broke.
    """

    text: str
    broken: list[int]


def resample(
    folder: Path,
    overrides: Sequence[str],
    checkpoint: str | None,
    device: str,
    *,
    count: int,
    attack: str,
    key: str | None,
    report: Report = silent,
) -> Resampled:
    """Attack some of the images that survived a stored evaluation, drawn at random.

    Args:
        folder: folder of a run or of a stored evaluation.
        count: number of survivors; all if there are fewer.
        attack: evaluator or attack.
        key: name of the evaluation. Default: the one with the lowest robust accuracy.
        report: is called as the attack proceeds.

    Raises:
        RobustCliError: there is no such evaluation, or nothing survived it.
    """
    evaluator = instantiate(evaluator_of(attack, {}))
    model = evaluated_model(folder, overrides, checkpoint)
    stored = {path.stem: read_evaluation(path) for path in sorted(RunFolder(folder).evaluations.glob("*.json"))}
    attacked = {name: one for name, one in stored.items() if not one.is_clean}
    if key is not None and key not in attacked:
        raise RobustCliError(f"--key: {folder} has no attack '{key}'{suggest(key, attacked)}")
    if not attacked:
        raise RobustCliError(f"{folder}: holds no evaluation under attack, so there are no survivors to attack")
    chosen = key or min(attacked, key=lambda name: attacked[name].best_estimate)
    result = attacked[chosen]
    survivors = torch.tensor([number for number, letter in enumerate(result.survivors) if letter == "1"])
    if not len(survivors):
        raise RobustCliError(f"{folder}: no image survived {chosen}, so there is nothing to attack")
    seed = derive(result.seed, "resample", attack)
    order = torch.randperm(len(survivors), generator=torch.Generator().manual_seed(seed))
    rows = survivors[order[:count]].sort().values
    on = choose_device(device)
    data = test_images(model.defaults, on)
    network = model.load(data, on).network
    x, y = data.images("test", result.total)
    rows_there = rows.to(y.device)
    threat = _threat_of(chosen, result)
    found = evaluate(attack, {}, evaluator, network, x[rows_there], y[rows_there], threat, seed, report=report)
    assert found.evidence is not None
    broken: list[int] = rows[~found.evidence.survives].tolist()
    text = (
        f"{chosen}: {attack} with another seed broke {len(broken)} of {len(rows)} survivors that it attacked, of "
        f"{result.correct}"
    )
    if not broken:
        return Resampled(f"{text}; no verdict changes", broken)
    most = result.correct - len(broken)
    shown = ", ".join(map(str, broken[:10])) + (", ..." if len(broken) > 10 else "")
    return Resampled(
        # With the counts, because one image of many may not change the percentage.
        f"{text} (images {shown}): robust accuracy is at most {100 * most / result.total:.2f} % ({most} of "
        f"{result.total} images), not the stored {100 * result.accuracy:.2f} % ({result.correct})",
        broken,
    )


def _threat_of(key: str, result: Evaluation) -> ThreatModel:
    """The one threat model of an evaluation."""
    threats = threats_of(result, key)
    known = {threats[stage.name] for stage in result.stages if stage.is_search}
    if len(known) != 1:
        raise RobustCliError(
            f"{key}: has the threat models {', '.join(sorted(map(str, known))) or 'none'}; expected one"
        )
    return known.pop()
