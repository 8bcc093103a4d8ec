"""AutoAttack as run by the package of its authors: the reference for the native engine."""

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# The package's l1 projection sums in single precision: its points overshoot by 1e-5 (32x32x3) to 1e-3 (224x224x3).
_OVERSHOOT = 2e-3


@dataclass(frozen=True, kw_only=True)
class Package(Attack):
    """The attacks of the package, made safe for images of any size, few classes and few channels.

    Args:
        version: version of AutoAttack, which sets the budgets.
        attacks: attacks to run, in this order.
        batch_size: images attacked at once; the package draws its noise by the batch.
    """

    version: str
    attacks: tuple[str, ...]
    batch_size: int

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert isinstance(rng, IndexedNoise)
        with _tracer_restored(x.device):
            x = x.detach().contiguous()
            ensemble = self._ensemble(model, x, threat, rng.seed)
            with _overheard(ensemble.logger) as messages:
                x_adv, _ = ensemble.run_standard_evaluation(x, y, batch_size=self.batch_size)
        for message in _translated(messages):
            warnings.warn(message, stacklevel=2)
        return _without_overshoot(x_adv, x, threat)

    def parts(self, threat: ThreatModel, shape: tuple[int, int, int]) -> tuple[str, ...]:
        """The attacks that run: Square is left out where its first l2 or l1 perturbation does not fit the image."""
        fits = threat.norm == "linf" or _tiles_fit(*shape[1:])
        return tuple(part for part in self.attacks if part != "square" or fits)

    def _ensemble(self, model: nn.Module, x: Tensor, threat: ThreatModel, seed: int) -> Any:
        # Here, not above: the native engine needs nothing of it.
        from pyautoattack import AutoAttack as Ensemble  # type: ignore[import-untyped]

        def logits_of(images: Tensor) -> Tensor:
            # Square overwrites the logits that it is given; they may be the model's own storage.
            logits: Tensor = model(images)
            return logits.clone()

        with torch.no_grad():
            classes = logits_of(x[:1]).shape[1]
        # Not version "custom": its restarts default to 5, which no published version has for only APGD-CE.
        ensemble = Ensemble(
            logits_of,
            norm=_NORMS[threat.norm],
            eps=threat.radius,
            version=self.version,
            seed=seed,
            device=x.device,
        )
        ensemble.attacks_to_run = list(self.parts(threat, (x.shape[1], x.shape[2], x.shape[3])))
        if len(ensemble.attacks_to_run) < len(self.attacks):
            warnings.warn(
                f"the package's Square attack cannot run on {x.shape[2]}x{x.shape[3]} images in {threat.norm}; it is "
                "left out, and with it the only attack that would notice masked gradients",
                stacklevel=3,
            )
        for attack in (ensemble.apgd_targeted, ensemble.fab):
            # With more targets than wrong classes the package warns, then fails on an index.
            attack.n_target_classes = min(attack.n_target_classes, classes - 1)
        return ensemble


def _without_overshoot(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Project points that lie outside the threat set only by rounding; others stay, to be refused later."""
    is_close = threat.size(x_adv - x) <= threat.radius * (1 + _OVERSHOOT)
    is_overshot = ~threat.contains(x_adv, x) & is_close
    if not bool(is_overshot.any()):
        return x_adv
    warnings.warn(
        f"{int(is_overshot.sum())} adversarial images lay outside the threat set {threat} by rounding, up to "
        f"{_OVERSHOOT:.1%} of its radius; they were projected and classified again",
        stacklevel=3,
    )
    return torch.where(is_overshot.view(-1, 1, 1, 1), threat.project(x_adv, x), x_adv)


def _tiles_fit(height: int, width: int) -> bool:
    """Whether the tiles that start Square fit: a fifth of the height wide, from an offset that centers five."""
    side = height // 5
    if side == 0:
        return False
    offset = (height - 5 * side) // 2
    # A tile of one pixel beyond the edge is empty and does no harm; a larger one that is cut does not match.
    return side == 1 or all(offset + extent // side * side <= extent for extent in (height, width))


def _translated(messages: Iterable[str]) -> Iterator[str]:
    """Yield the messages of the package, reworded for readers of the result, each once."""
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
            # The messages left out are about class counts, which AutoAttack.stages has handled.
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
def _tracer_restored(device: torch.device) -> Iterator[None]:
    """Restore the tracer of the process, which the package removes.

    Its count of gradient calls during a forward is never reset either: without it, every model after the
    first that optimizes at test time is taken for one.
    """
    from pyautoattack import checks

    tracer = sys.gettrace()
    # The package seeds the current device only; a model on another one would draw from an unseeded generator.
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    for name in checks.funcs:
        checks.funcs[name] = 0
    try:
        with on_device:
            yield
    finally:
        sys.settrace(tracer)
