"""Checks before an evaluation: can this model and these images give a meaningful number?"""

import warnings
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from robustcli.data.images import AnyImages, chunks_of
from robustcli.errors import EvaluationError
from robustcli.evaluation.gradient import is_quantized
from robustcli.runtime.out_of_memory import is_out_of_memory
from robustcli.threat.threat import ThreatModel

# Tolerance for rounding in single precision, as a share of the largest logit: between two equal calls, and between two
# batches with the same image. Networks in half precision have a larger tolerance, in units of their epsilon.
_REPEAT_ROUNDING, _BATCH_ROUNDING, _EPSILONS = 1e-5, 1e-4, 16
_EPSILON_OF_8_BITS = 2**-8
_PIXEL_ROUNDING = 1e-6
# Number of images of the checks.
_PROBES = 16


def preflight(
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    *,
    allows_randomness: bool = False,
    batch_size: int | None = None,
) -> None:
    """Raise for a model or data whose accuracy would be meaningless.

    Weaker signs are only warnings: logits that look like probabilities, and a radius with which every image can become
    the same gray image.

    Args:
        model: the model; must be in eval mode throughout.
        x, y: images (n, c, h, w) in [0, 1] and labels, on the model's device.
        threat: the threat model.
        allows_randomness: whether logits may vary from call to call.
        batch_size: largest batch of the evaluation; None is the batch size of the checks.

    Raises:
        EvaluationError: the first problem found.
    """
    _check_modes(model)
    _check_data(model, x, y)
    if all(bool((threat.size(part - 0.5) <= threat.radius).all()) for part in chunks_of(x)):
        warnings.warn(
            f"threat {threat}: the radius reaches from every image to uniform gray, so no model can be robust; "
            "is eps in pixels of [0, 1]?",
            stacklevel=2,
        )
    probes = x[:_PROBES]
    logits = _logits(model, probes)
    _check_logits(logits, y)
    if not allows_randomness:
        _check_repeats(model, probes, logits)
        _check_batches(model, x[: batch_size or _PROBES])
    rows_sum_to_1 = bool(((logits.sum(1) - 1).abs() < 1e-4).all())
    if rows_sum_to_1 and float(logits.min()) > -1e-6:
        warnings.warn(
            "the model's outputs look like probabilities: gradients of a softmax vanish where it is confident, and "
            "attacks fail for that reason; return the logits before the softmax",
            stacklevel=2,
        )


def _check_modes(model: nn.Module) -> None:
    trained = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if trained:
        shown = ", ".join(trained[:3]) + (", ..." if len(trained) > 3 else "")
        raise EvaluationError(
            f"model: {len(trained)} modules are in train mode ({shown}); an evaluation needs eval mode, without "
            "dropout and with running statistics of batch norms: call model.eval()"
        )


def _check_data(model: nn.Module, x: AnyImages, y: Tensor) -> None:
    if len(x.shape) != 4:
        raise EvaluationError(f"x: shape {tuple(x.shape)}; expected (n, c, h, w)")
    if not len(x):
        raise EvaluationError("x: no images; an accuracy needs at least one")
    if x.dtype != torch.float32:
        raise EvaluationError(f"x: {x.dtype}; expected torch.float32, with pixels in [0, 1]")
    lows, highs = zip(*((part.min(), part.max()) for part in chunks_of(x)), strict=True)
    # As tensors, because min and max propagate NaN.
    low, high = float(torch.stack(lows).min()), float(torch.stack(highs).max())
    # Written so that NaN, for which every comparison is false, is refused.
    if not (low >= -_PIXEL_ROUNDING and high <= 1 + _PIXEL_ROUNDING):
        raise EvaluationError(
            f"x: pixels from {low:.4g} to {high:.4g}; expected [0, 1]: normalization belongs inside the model, "
            "because eps refers to raw pixels"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise EvaluationError(
            f"y: {y.dtype} of shape {tuple(y.shape)} for {len(x)} images; expected torch.int64 of shape ({len(x)},)"
        )
    for held in chain([y], model.parameters(), model.buffers()):
        if held.device != x.device:
            raise EvaluationError(
                f"x is on {x.device}, but {'y' if held is y else 'the model'} is on {held.device}; "
                "move them to one device"
            )


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(
            f"model: returned {found} for {len(x)} images; expected logits of shape ({len(x)}, k), k at least 2"
        )
    if logits.dtype != torch.float32:
        raise EvaluationError(f"model: logits are {logits.dtype}; expected torch.float32; call model.float()")
    # A copy, in case the model returns its own storage.
    return logits.clone()


def _check_logits(logits: Tensor, y: Tensor) -> None:
    is_finite = torch.isfinite(logits).all(1)
    if not bool(is_finite.all()):
        raise EvaluationError(
            f"model: logits are not finite on {int((~is_finite).sum())} of the first {len(logits)} images"
        )
    low, high, classes = int(y.min()), int(y.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise EvaluationError(
            f"y: labels from {low} to {high}, but the model has {classes} logits; expected labels from 0 to "
            f"{classes - 1}"
        )


def _check_repeats(model: nn.Module, probes: Tensor, logits: Tensor) -> None:
    """Check that the same images, again, one by one and in reverse order, give the same logits."""
    scale = float(logits.abs().max())
    drift = float((_logits(model, probes) - logits).abs().max())
    if drift > _REPEAT_ROUNDING * scale:
        raise EvaluationError(
            f"model: two equal calls give logits that differ by {drift:.3g} (their size is {scale:.3g}); one attack "
            "on a randomized model means little: evaluate it with autoattack, version 'rand'"
        )
    alone = torch.cat([_logits(model, image[None]) for image in probes])
    backwards = _logits(model, probes.flip(0)).flip(0)
    _require_near(model, logits, (alone, backwards), f"{len(probes)}")


def _check_batches(model: nn.Module, x: Tensor) -> None:
    """Check that logits in a batch of the largest size equal those in small batches."""
    while len(x) > _PROBES and not _is_checked(model, x):
        # Evaluations then use smaller batches too.
        x = x[: len(x) // 2]


def _is_checked(model: nn.Module, x: Tensor) -> bool:
    """Check a batch; return False if it does not fit into memory.

    A separate function, because the traceback of an exception keeps the tensors that did not fit.
    """
    try:
        _check_batch(model, x)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _check_batch(model: nn.Module, x: Tensor) -> None:
    small = torch.cat([_logits(model, part) for part in torch.split(x, _PROBES)])
    whole, backwards = _logits(model, x), _logits(model, x.flip(0)).flip(0)
    halves = torch.cat([_logits(model, part) for part in torch.split(x, (len(x) + 1) // 2)])
    _require_near(model, small, (whole, backwards, halves), f"{len(x)}")


def _require_near(model: nn.Module, logits: Tensor, others: Sequence[Tensor], size: str) -> None:
    scale = float(logits.abs().max())
    influence = max(float((other - logits).abs().max()) for other in others)
    if influence > max(_BATCH_ROUNDING, _EPSILONS * _epsilon(model)) * scale:
        raise EvaluationError(
            f"model: the logits of an image change by {influence:.3g} (their size is {scale:.3g}) with the images "
            f"next to it in a batch of {size}; accuracy would depend on the batch. Batch norms without running "
            "statistics do this"
        )


def _epsilon(model: nn.Module) -> float:
    """The coarsest relative rounding in a model: of its weights, or of 8-bit layers, which scale by the batch."""
    if is_quantized(model):
        return _EPSILON_OF_8_BITS
    return max((torch.finfo(one.dtype).eps for one in model.parameters() if one.is_floating_point()), default=0.0)
