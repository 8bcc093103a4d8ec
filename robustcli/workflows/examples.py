"""Adversarial examples that an evaluation stored, as plain arrays next to the clean images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustcli.data.images import Images
from robustcli.data.loading import load_data
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluation.per_image import ImageResult, decoded, read_adversarial_examples, read_per_image
from robustcli.runtime.device import choose_device
from robustcli.store.files import replacing
from robustcli.store.runs import RunFolder
from robustcli.store.search import run_folders
from robustcli.workflows.verify import evaluated_model


@dataclass(frozen=True)
class Survivor:
    """An image that survived every attack.

    Args:
        index: number of the image in the test data.
        x: (c, h, w) float32 pixels in [0, 1].
        label: true class.
        margin: largest margin that an attack reached, wrong logit minus true one; negative.
    """

    index: int
    x: NDArray[np.float32]
    label: int
    margin: float


@dataclass(frozen=True)
class Examples:
    """Clean images and their adversarial examples, in the order of the data; and images that survived.

    Args:
        key: name of the evaluation.
        indices: (n,) number of each image in the test data.
        x, x_adv: (n, c, h, w) float32 pixels in [0, 1].
        labels, predictions: (n,) true class, and predicted class of the adversarial example.
        broken_by: attack that broke each image.
        classes: class names.
        survivors: images that survived, those closest to being broken first.
    """

    key: str
    indices: NDArray[np.int64]
    x: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    broken_by: list[str]
    classes: list[str]
    survivors: list["Survivor"]

    def save(self, path: Path) -> None:
        """Write an .npz file with x, x_adv, labels, predictions and indices."""
        arrays: dict[str, Any] = {
            name: getattr(self, name) for name in ("x", "x_adv", "labels", "predictions", "indices")
        }
        with replacing(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def keys_with_examples(folder: Path) -> list[str]:
    """Names of the evaluations of a run or of `robust eval` that stored adversarial examples."""
    run = RunFolder(folder)
    keys = (path.stem for path in sorted(run.evaluations.glob("*.csv")))
    return [key for key in keys if run.evaluation(key).adversarial_examples.is_file()]


def stored_examples(
    folder: Path, overrides: Sequence[str] = (), *, key: str | None = None, limit: int | None = None
) -> Examples:
    """Read the adversarial examples of one evaluation, and the clean images from the data set.

    Args:
        folder: folder of a run or of a stored evaluation, or one that holds a single one with examples, such as evals.
        overrides: values to change, for example data.root=PATH.
        key: name of the evaluation. Default: the last one that stored examples.
        limit: read only the first `limit` broken images, and as many survivors.

    Raises:
        RobustCliError: no examples were stored, or the images cannot be read.
    """
    folder = _with_examples(folder)
    keys = keys_with_examples(folder)
    if key is not None and key not in keys:
        raise RobustCliError(f"{folder}: no adversarial examples of '{key}'{suggest(key, keys)}")
    if not keys:
        raise RobustCliError(
            f"{folder}: no adversarial examples are stored; evaluate with --save-examples, or set save_examples: true "
            "in the spec"
        )
    key = keys[-1] if key is None else key
    model, files = evaluated_model(folder, overrides, None), RunFolder(folder).evaluation(key)
    outcomes = {line.image: line for line in read_per_image(files.per_image)}
    stored = list(read_adversarial_examples(files.adversarial_examples))
    wanted = set(sorted(number for _, numbers, _ in stored for number in numbers.tolist())[:limit])
    data = load_data(model.defaults.data, choose_device("cpu"))
    x, _ = data.images("test")
    if wanted and max(wanted) >= len(x):
        raise RobustCliError(f"{files.adversarial_examples}: image {max(wanted)}; the data set has {len(x)} images")
    found: dict[int, torch.Tensor] = {}
    for encoding, numbers, codes in stored:
        rows = np.array([row for row, number in enumerate(numbers.tolist()) if number in wanted], dtype=np.int64)
        chosen = torch.from_numpy(numbers[rows])
        found |= dict(zip(chosen.tolist(), decoded(encoding, codes[rows], x[chosen]), strict=True))
    order = sorted(found)
    empty = torch.zeros((0, *x.shape[1:]))
    return Examples(
        key=key,
        indices=np.array(order, dtype=np.int64),
        x=x[torch.tensor(order, dtype=torch.int64)].float().numpy(),
        x_adv=(torch.stack([found[number] for number in order]) if order else empty).float().numpy(),
        labels=np.array([outcomes[number].label for number in order], dtype=np.int64),
        predictions=np.array([outcomes[number].prediction for number in order], dtype=np.int64),
        broken_by=[outcomes[number].broken_by for number in order],
        classes=list(data.classes),
        survivors=_survivors(outcomes.values(), x, limit),
    )


def _with_examples(folder: Path) -> Path:
    """The folder itself, or the only one in it that has examples.

    Raises:
        RobustCliError: several have.
    """
    if not folder.is_dir():
        raise RobustCliError(f"{folder}: there is no such folder; expected that of a run or of a stored evaluation")
    if (folder / "evaluations").is_dir():
        return folder
    found = [path for path in run_folders(folder) if (path / "evaluations").is_dir() and keys_with_examples(path)]
    if len(found) > 1:
        shown = "".join(f"\n  {path}" for path in found[:10])
        raise RobustCliError(
            f"{folder}: {len(found)} folders in it have adversarial examples; name one of them:{shown}"
        )
    return found[0] if found else folder


def _survivors(outcomes: Iterable[ImageResult], x: Images, limit: int | None) -> list[Survivor]:
    survived = [line for line in outcomes if not line.broken_by and line.image < len(x)]
    chosen = sorted(survived, key=lambda line: -line.margin)[:limit]
    shown = x[torch.tensor([line.image for line in chosen], dtype=torch.int64)].float().numpy()
    return [Survivor(line.image, image, line.label, line.margin) for line, image in zip(chosen, shown, strict=True)]
