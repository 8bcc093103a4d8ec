"""AutoAttack, as the package of its authors runs it."""

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pyautoattack import AutoAttack as Ensemble  # type: ignore[import-untyped]
from pyautoattack import checks
from torch import Tensor, nn

from robustcli.attacks.crafting import crafting
from robustcli.evaluators import EVALUATORS, chunks, is_correct
from robustcli.evaluators.verification import require_inside, right_when_clean
from robustcli.fields import Count
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# The package's l1 projection sums in single precision: its points overshoot by 1e-5 (32x32x3) to 1e-3 (224x224x3).
_OVERSHOOT = 2e-3


@EVALUATORS.register("autoattack", smoke={"batch_size": 8})
@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """AutoAttack: APGD, FAB and Square with the published budgets, by the package of its authors.

    The package sees only images that are right when clean. What it claims is checked: every image that it
    returns lies in the threat set and is classified again; an image survives when both agree that it does.
    Each departure that few classes or small images force is announced as a warning. Unlike other
    evaluators' noise, the package's depends on `batch_size`.

    Args:
        version: "standard" (apgd-ce, apgd-t, fab-t, square), "plus" (adds apgd-dlr and fab, more restarts) or
            "rand" (apgd-ce and apgd-dlr on the mean of 20 gradients, for models whose logits vary).
        batch_size: images attacked at once.

    Reference: Croce and Hein, ICML 2020; l1: Croce and Hein, ICML 2021; code: pyautoattack.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    batch_size: Count = 250

    @property
    def allows_randomness(self) -> bool:
        """Whether the model's logits may vary from call to call."""
        return self.version == "rand"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        with _globals_restored(x.device), crafting(model, "eval"):
            # A model that draws noise of its own draws the same for the same seed.
            torch.manual_seed(rng.seed)
            survives = right_when_clean(model, x, y, self.batch_size)
            # At radius 0 the clean image is all there is, and the package divides by the radius.
            if threat.radius == 0 or not bool(survives.any()):
                return survives
            index = survives.nonzero().flatten()
            survives[index] = self._attack(model, x[index].detach().contiguous(), y[index], threat, rng.seed)
        return survives

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
        """Survivors among images that are right when clean."""

        def logits_of(images: Tensor) -> Tensor:
            # Square overwrites the logits that it is given; they may be the model's own storage.
            logits: Tensor = model(images)
            return logits.clone()

        with torch.no_grad():
            classes = logits_of(x[:1]).shape[1]
        # Not version "custom": its restarts default to 5, which no published version has for APGD-CE alone.
        ensemble = Ensemble(
            logits_of,
            norm=_NORMS[threat.norm],
            eps=threat.radius,
            version=self.version,
            seed=seed,
            device=x.device,
        )
        if self.version == "plus" and threat.norm == "l1":
            warnings.warn("version 'plus' has no published settings for l1; use 'standard'", stacklevel=2)
        _fit_to_classes(ensemble, classes)
        _fit_to_image(ensemble, x.shape[-2], x.shape[-1], threat)
        with _overheard(ensemble.logger) as messages:
            x_adv, y_adv = ensemble.run_standard_evaluation(x, y, batch_size=self.batch_size)
        for message in _translated(messages):
            warnings.warn(message, stacklevel=2)
        return self._verified(model, x, y, x_adv, y_adv, threat)

    def _verified(
        self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, y_adv: Tensor, threat: ThreatModel
    ) -> Tensor:
        """Who survives by the package's labels and by a forward of our own on the points that it returned."""
        is_right = torch.zeros(len(x), dtype=torch.bool)
        moved = 0
        for part in chunks(len(x), self.batch_size):
            found = x_adv[part]
            is_outside = ~threat.contains(found, x[part])
            is_close = threat.size(found - x[part]) <= threat.radius * (1 + _OVERSHOOT)
            is_overshot = is_outside & is_close
            if bool(is_overshot.any()):
                found = torch.where(is_overshot.view(-1, 1, 1, 1), threat.project(found, x[part]), found)
                moved += int(is_overshot.sum())
            require_inside("autoattack", found, x[part], threat)
            is_right[part] = is_correct(model, found, y[part]).cpu()
        if moved:
            warnings.warn(
                f"{moved} adversarial images lay outside the threat set {threat} by rounding, up to "
                f"{_OVERSHOOT:.1%} of its radius; they were projected and classified again",
                stacklevel=3,
            )
        is_right_there = (y_adv == y).cpu()
        contested = int((is_right != is_right_there).sum())
        if contested and not self.allows_randomness:
            warnings.warn(
                f"{contested} images are classified differently by the package's forward and by ours, "
                "which rounding does at a decision boundary; they count as broken",
                stacklevel=3,
            )
        return is_right & is_right_there


def _fit_to_classes(ensemble: Any, classes: int) -> None:
    """Replace what needs more classes than there are; the package warns of it, then fails on an index."""
    planned = list(ensemble.attacks_to_run)
    if classes == 2:
        possible = ["fab" if name == "fab-t" else name for name in planned if name not in ("apgd-dlr", "apgd-t")]
    elif classes == 3:
        possible = ["apgd-dlr" if name == "apgd-t" else name for name in planned]
    else:
        possible = planned
    ensemble.attacks_to_run = list(dict.fromkeys(possible))
    if ensemble.attacks_to_run != planned:
        lost = "the DLR loss needs 3" if classes == 2 else "the targeted DLR loss needs 4"
        warnings.warn(
            f"{lost} classes and there are {classes}: runs {', '.join(ensemble.attacks_to_run)} instead "
            f"of the published {', '.join(planned)}",
            stacklevel=4,
        )
    for name, attack in (("apgd-t", ensemble.apgd_targeted), ("fab-t", ensemble.fab)):
        if attack.n_target_classes >= classes:
            if name in ensemble.attacks_to_run:
                warnings.warn(
                    f"{name} aims at {classes - 1} target classes, all that there are, instead of the "
                    f"published {attack.n_target_classes}",
                    stacklevel=4,
                )
            attack.n_target_classes = classes - 1


def _fit_to_image(ensemble: Any, height: int, width: int, threat: ThreatModel) -> None:
    """Leave Square out where its first l2 or l1 perturbation does not fit the image."""
    if "square" not in ensemble.attacks_to_run or threat.norm == "linf" or _tiles_fit(height, width):
        return
    ensemble.attacks_to_run.remove("square")
    warnings.warn(
        f"the package's Square attack cannot run on {height}x{width} images in {threat.norm}; it is left "
        "out, and with it the only attack that would notice masked gradients",
        stacklevel=4,
    )


def _tiles_fit(height: int, width: int) -> bool:
    """Whether the tiles that start Square fit: a fifth of the height wide, from an offset that centres five."""
    side = height // 5
    if side == 0:
        return False
    offset = (height - 5 * side) // 2
    # A tile of one pixel beyond the edge is empty and does no harm; a larger one that is cut does not match.
    return side == 1 or all(offset + extent // side * side <= extent for extent in (height, width))


def _translated(messages: Iterable[str]) -> Iterator[str]:
    """The package's messages as a reader of the number needs them, each once."""
    flat_starts = 0
    for message in dict.fromkeys(messages):
        zero = re.match(r"there are (\d+) points with zero gradient", message)
        square = re.match(r"Square Attack has decreased the robust accuracy of ([\d.]+%)", message)
        if zero:
            flat_starts = max(flat_starts, int(zero.group(1)))
        elif square:
            yield (
                f"Square, which uses no gradients, broke {square.group(1)} of the images right when "
                "clean after the gradient attacks had failed on them: gradients may be masked, and the true "
                "robust accuracy lower"
            )
        elif not message.startswith(("with only", "it seems that more target classes")):
            # Those left out speak of class counts, which _fit_to_classes has dealt with.
            yield message.partition(" See flags_doc.md")[0]
    if flat_starts:
        yield (
            f"the gradient of the DLR loss was exactly zero on up to {flat_starts} images of one batch; "
            "gradient attacks cannot move there, and the true robust accuracy may be lower"
        )


@contextmanager
def _overheard(logger: logging.Logger) -> Iterator[list[str]]:
    """Collect what is logged at WARNING and above, instead of having it printed."""
    messages: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        messages.append(record.getMessage())
        return False

    level, is_disabled = logger.level, logger.disabled
    logger.disabled = False
    if logger.getEffectiveLevel() > logging.WARNING:
        logger.setLevel(logging.WARNING)
    logger.addFilter(take)
    try:
        yield messages
    finally:
        logger.removeFilter(take)
        logger.setLevel(level)
        logger.disabled = is_disabled


@contextmanager
def _globals_restored(device: torch.device) -> Iterator[None]:
    """Undo what the package does to the process: it seeds global generators and drops the tracer.

    Its count of gradient calls during a forward is never reset either: without it, every model after the
    first that optimises at test time is taken for one.
    """
    tracer = sys.gettrace()
    numpy_state = np.random.get_state()
    # The package seeds the current device only; a model on another one would draw from an unseeded generator.
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))), on_device:
        for name in checks.funcs:
            checks.funcs[name] = 0
        try:
            yield
        finally:
            sys.settrace(tracer)
            np.random.set_state(numpy_state)
