"""Attack and evaluate a model from Python."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.api.inputs import (
    Array,
    Eps,
    Labels,
    Model,
    count_of,
    device_of,
    images_of,
    labels_of,
    module_of,
    name_of,
    plain,
    threat_of,
)
from robustcli.attacks.crafting import crafting
from robustcli.data.loading import load_data, load_test_data
from robustcli.errors import EvaluationError, Interrupted, RobustCliError, in_one_line
from robustcli.evaluation.attack_choice import attack_settings, evaluator_of, with_batch_size
from robustcli.evaluation.confirm import require_inside
from robustcli.evaluation.evaluate import evaluate as run_evaluator
from robustcli.evaluation.per_image import ImageResult, per_image_results
from robustcli.evaluation.restore import settled
from robustcli.evaluation.stored import plain_parameters
from robustcli.evaluation.wording import interval as interval_text
from robustcli.evaluators import Stage, chunks
from robustcli.models.named_data import named_data
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.registry.types import Family, Norm
from robustcli.specs.check import checked_member
from robustcli.store.evaluations import Evaluation
from robustcli.threat.noise import IndexedNoise

DataSet: TypeAlias = str | PathLike[str] | Mapping[str, Any]
Data: TypeAlias = tuple[Array, Labels] | DataSet
_Images = TypeVar("_Images", Tensor, NDArray[Any])

_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracy under attack with its evidence.

    Args:
        evaluation: the record, as results.json keeps it: counts, stages, settings, costs.
        x_adv: adversarial image where one was found, else the clean image: (n, c, h, w), on the CPU.
        per_image: outcome for each image, in the order of the images.
    """

    evaluation: Evaluation
    x_adv: Tensor = field(repr=False)
    per_image: list[ImageResult] = field(repr=False)

    @property
    def clean(self) -> float:
        """Clean accuracy, as a fraction."""
        return sum(image.clean == image.label for image in self.per_image) / len(self.per_image)

    @property
    def robust(self) -> float:
        """Share of the images that are classified correctly when clean and under every attack tried."""
        return self.evaluation.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the robust accuracy."""
        return self.evaluation.interval

    @property
    def verdict(self) -> Literal["TRUSTED", "SUSPECT"]:
        """SUSPECT if something indicates that the attacks failed for another reason than robustness."""
        return "SUSPECT" if self.evaluation.suspicions else "TRUSTED"

    @property
    def suspicions(self) -> list[str]:
        """Reasons for the verdict SUSPECT."""
        return list(self.evaluation.suspicions or ())

    @property
    def warnings(self) -> list[str]:
        """What else a reader of the number must know."""
        return list(self.evaluation.warnings)

    @property
    def survives(self) -> NDArray[np.bool_]:
        """Mask (n,) of the images that are classified correctly under every attack."""
        return np.array([letter == "1" for letter in self.evaluation.survivors])

    def to_json(self) -> dict[str, Any]:
        """The record as plain data, as in results.json."""
        return self.evaluation.to_json()

    def __str__(self) -> str:
        first = (
            f"clean {100 * self.clean:.1f} %, robust {interval_text(self.evaluation)} % of {len(self.per_image)} "
            f"images, {self.evaluation.threat}: {self.verdict}"
        )
        return "\n  ".join([first, *self.suspicions, *self.warnings])


def attack(
    model: Model,
    x: _Images,
    y: Labels,
    *,
    norm: Norm,
    eps: Eps,
    attack: str = "pgd",
    seed: int = 0,
    batch_size: int = _BATCH,
    **settings: Any,
) -> _Images:
    """Find adversarial images: the result of an attack, checked to lie in the threat set.

    The model is attacked in eval mode and not changed. By default, attacks with the setting `keep`
    return any point that fools the model, as in evaluations. All images are attacked, including
    those that are already misclassified.

    Args:
        model: module or callable, pixels in [0, 1] -> logits.
        x: images (n, c, h, w), float in [0, 1] or uint8.
        y: labels (n,).
        norm: linf, l2 or l1.
        eps: radius as a number or as text such as "8/255"; pixels of [0, 1] for linf, length for l2, sum for l1.
        attack: name of an attack; see `robust list attacks`.
        seed: seed of the attack's noise.
        batch_size: images attacked at once; changes memory and speed, not the result.
        settings: settings of the attack, for example steps=50; see `robust show NAME`.

    Returns:
        Adversarial images as x is given: a NumPy array or a tensor on the device of x, float32.

    Raises:
        RobustCliError: a setting, an image or a label is wrong.
        EvaluationError: the attack left the threat set, or logits are not finite.
    """
    threat, network = threat_of(norm, eps), module_of(model)
    attack, seed, batch_size = (
        name_of("attack", attack),
        count_of("seed", seed, 0),
        count_of("batch_size", batch_size, 1),
    )
    if attack in catalog("evaluators"):
        raise RobustCliError(
            f"attack: '{attack}' is an evaluator; use robustcli.evaluate(model, (x, y), attack='{attack}').x_adv"
        )
    given = attack_settings(attack, plain(settings), option="")
    chosen = checked_member(Family("attacks"), given, ("attack",), "robustcli.attack")
    # As in an evaluation, so that both find the same points.
    stage = Stage.of(instantiate(chosen), batch_size).limited(batch_size)
    device = device_of(network, x)
    images = images_of(x, device)
    labels = labels_of(y, len(images), device)
    numbers = torch.arange(len(images), device=device)
    with settled(network, device.type), crafting(network, "eval"):
        _require_logits(network, images, labels)
        parts = []
        for part in chunks(len(images), batch_size):
            own, noise = images[part], IndexedNoise(seed, numbers[part]).split(stage.noise)
            points = stage.attack(network, own.clone(), labels[part], threat, noise).detach()
            require_inside(attack, points, own, threat)
            parts.append(points)
        found = torch.cat(parts)
    return found.cpu().numpy() if isinstance(x, np.ndarray) else found.to(x.device)


def evaluate(
    model: Model,
    data: Data,
    *,
    norm: Norm,
    eps: Eps,
    attack: str = "autoattack",
    seed: int = 0,
    examples: int | None = None,
    batch_size: int | None = None,
    **settings: Any,
) -> Result:
    """Evaluate a model: the share of the images that survive an attack, with interval, verdict and evidence.

    Nothing is stored; `robust eval` does that. The model is evaluated in eval mode and in single precision; it is left
    as it was. All images and the adversarial ones are held in memory as float32; for more images than fit there use
    `robust eval`, which makes floats of a batch at a time.

    Args:
        model: module or callable, pixels in [0, 1] -> logits.
        data: (x, y) as in `attack`, or the test images of a data set: its name, an .npz file, a folder, or
            {"name": "cifar10", "root": "data"} as in a spec.
        norm: linf, l2 or l1.
        eps: radius as a number or as text such as "8/255".
        attack: evaluator or attack; see `robust list evaluators` and `robust list attacks`.
        seed: seed of the attacks' noise.
        examples: use only the first N images.
        batch_size: images attacked at once; changes memory and speed, not the result.
        settings: settings of the evaluator or attack, for example steps=50.

    Raises:
        RobustCliError: a setting is wrong, or the images cannot be read.
        EvaluationError: the number would be meaningless; the message says why.
    """
    threat, network = threat_of(norm, eps), module_of(model)
    seed = count_of("seed", seed, 0)
    chosen = evaluator_of(name_of("attack", attack), plain(settings), option="", source="robustcli.evaluate")
    if batch_size is not None:
        chosen = with_batch_size(chosen, count_of("batch_size", batch_size, 1))
    evaluator = instantiate(chosen)
    x, y = _images_and_labels(network, data, examples)
    with crafting(network, "eval"):
        with settled(network, x.device.type):
            _require_logits(network, x, y)
        found = run_evaluator(
            chosen.name, plain_parameters(chosen), evaluator, network, x, y, evaluator.threat or threat, seed
        )
    evidence = found.evidence
    assert evidence is not None
    x_adv = x.cpu().clone()
    for number, point in evidence.points.items():
        x_adv[number] = point
    return Result(evaluation=Evaluation(**dict(found)), x_adv=x_adv, per_image=per_image_results(evidence))


def images(
    data: DataSet, *, split: Literal["train", "test"] = "test", examples: int | None = None
) -> tuple[Tensor, Tensor]:
    """Read images (n, c, h, w) in [0, 1] and their labels (n,), in fixed order and without augmentation.

    Args:
        data: name of a data set, .npz file, folder, or {"name": "cifar10", "root": "data"} as in a spec.
        split: part of the data set.
        examples: only the first N images.

    Raises:
        RobustCliError: the images cannot be read, or there are fewer.
    """
    chosen, device = _named_data(data), torch.device("cpu")
    examples = None if examples is None else count_of("examples", examples, 1)
    read = load_test_data(chosen, device) if split == "test" else load_data(chosen, device)
    return read.evaluation(split, examples)


def _images_and_labels(network: nn.Module, data: Data, examples: int | None) -> tuple[Tensor, Tensor]:
    """Images and labels on the device of the network."""
    examples = None if examples is None else count_of("examples", examples, 1)
    if isinstance(data, tuple) and len(data) == 2:
        device = device_of(network, data[0])
        x = images_of(data[0], device)
        y = labels_of(data[1], len(x), device)
        if examples is not None and examples > len(x):
            raise RobustCliError(f"examples: found {examples}; there are {len(x)} images")
        return x[:examples], y[:examples]
    if isinstance(data, tuple):
        raise RobustCliError(f"data: found {len(data)} parts; expected (x, y), a name, a path or a mapping")
    read = load_test_data(_named_data(data), device_of(network, None))
    x, y = read.evaluation("test", examples)
    with settled(network, x.device.type), crafting(network, "eval"):
        logits = _first_output(network, x)
    if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] != read.shape.classes:
        raise RobustCliError(
            f"data: found images of {read.shape.classes} classes; the model gives {logits.shape[1]} logits"
        )
    return x, y


def _named_data(data: DataSet) -> MemberSpec:
    """Return the data set that a name, a path or a part of a spec stands for."""
    if not isinstance(data, str | PathLike | Mapping):
        raise RobustCliError(f"data: found {type(data).__name__}; expected (x, y), a name, a path or a mapping")
    return named_data(plain(data) if isinstance(data, Mapping) else fspath(data))


def _require_logits(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise for a model whose output for an image is not a row of logits that fits the labels.

    Raises:
        EvaluationError: the message describes the output.
    """
    logits = _first_output(network, x)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(f"model: returned {found} for 1 image; expected logits of shape (1, k)")
    low, high, classes = int(y.min()), int(y.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise EvaluationError(f"y: found labels from {low} to {high}; the model has {classes} logits")


def _first_output(network: nn.Module, x: Tensor) -> object:
    """Return what a model makes of the first image.

    Raises:
        EvaluationError: it fails, or it changes the image in place, as it would change the images of the caller.
    """
    image = x[:1].clone()
    try:
        with torch.no_grad():
            output: object = network(image)
    except (Interrupted, RobustCliError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # code of users may raise anything
        kinds = {one.dtype for one in network.parameters() if one.is_floating_point()} - {torch.float32}
        kind = ", ".join(sorted(str(one).removeprefix("torch.") for one in kinds))
        hint = f"; its weights are {kind}, and images are float32: pass model.float()" if kind else ""
        shape = "x".join(map(str, x.shape[1:]))
        raise EvaluationError(f"model: fails on an image of {shape} ({in_one_line(error)}){hint}") from error
    if not torch.equal(image, x[:1]):
        raise EvaluationError(
            "model: changes its images in place; expected one that leaves them as they are, such as (x - mean) / std "
            "in place of x.sub_(mean).div_(std)"
        )
    return output
