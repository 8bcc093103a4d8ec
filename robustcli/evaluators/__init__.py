"""Who is still classified correctly. One evaluator per file.

evaluation.py calls them: it checks model and data first, counts passes and turns survivors into a result.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from robustcli.errors import EvaluationError
from robustcli.noise import IndexedNoise
from robustcli.registry import Registry
from robustcli.threat import ThreatModel

EVALUATORS = Registry("evaluators")


class Evaluator(Protocol):
    """Settings of an evaluation; calling it says who survives, image by image.

    Nobody survives who was wrong when clean. What a reader of the number must know (a departure from the
    published protocol, a sign of gradient masking) is raised as a Python warning. An evaluator made for models
    whose logits vary from call to call has a true attribute `allows_randomness`; without it such a model is an
    error.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        """Survivors of images x (n, c, h, w) with labels y (n,): bool (n,), on the CPU."""
        ...


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0..count."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def is_correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies as y: bool (n,), without gradients.

    Raises:
        EvaluationError: some logit is not finite; an argmax over NaN would be a number about nothing.
    """
    with torch.no_grad():
        logits: Tensor = model(x)
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            f"the model gives logits that are not finite on {int((~torch.isfinite(logits)).any(1).sum())} "
            f"of {len(x)} images: accuracy would mean nothing"
        )
    return logits.argmax(1) == y
