"""Promises of every evaluator."""

import warnings
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.evaluators.other_threat import Under
from robustcli.promises.attacks import RADII
from robustcli.promises.model_state import found_again
from robustcli.promises.networks import conv_net, images, linear_net
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def _judged(classes: int = 10) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, images, labels of which every third is wrong, and a mask of the right ones."""
    model, x = conv_net(classes=classes).eval(), images(7)
    with torch.no_grad():
        y = model(x).argmax(1)
    is_right = torch.arange(len(x)) % 3 != 0
    return model, x, torch.where(is_right, y, (y + 1) % classes), is_right


def gathered(evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Evidence:
    """What an evaluator finds; what it warns of is meant for the reader of a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gather(evaluator, model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))


def survivors(evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Who is left."""
    return gathered(evaluator, model, x, y, threat).survives


def gives_a_mask(evaluator: Evaluator, norm: Norm) -> None:
    """bool (n,) on the CPU; no image survives that was wrong when clean; x, y and the model are as found."""
    model, x, y, is_right = _judged()
    given_x, given_y = x.clone(), y.clone()
    with found_again(model):
        alive = survivors(evaluator, model, x, y, ThreatModel(norm, RADII[norm]))
    assert isinstance(alive, Tensor)
    assert alive.dtype == torch.bool
    assert alive.shape == (len(x),)
    assert alive.device.type == "cpu"
    assert not (alive & ~is_right).any(), "survives, and was wrong when clean"
    assert torch.equal(x, given_x)
    assert torch.equal(y, given_y)


def lets_the_right_live_at_radius_0(evaluator: Evaluator) -> None:
    model, x, y, is_right = _judged()
    if isinstance(evaluator, Under):
        evaluator = replace(evaluator, eps=Fraction(0))
    elif any(stage.threat is not None for stage in _stages(evaluator)):
        return  # It does not keep to the threat of the evaluation.
    assert torch.equal(survivors(evaluator, model, x, y, ThreatModel("linf", Fraction(0))), is_right)


def takes_the_smallest_batches(evaluator: Evaluator) -> None:
    """One image, and images of which none is right."""
    model, x, y, _ = _judged()
    threat = ThreatModel("linf", RADII["linf"])
    assert survivors(evaluator, model, x[1:2], y[1:2], threat).shape == (1,)
    wrong = (y + 5) % 10
    with torch.no_grad():
        assert (model(x).argmax(1) != wrong).all()
    assert not survivors(evaluator, model, x, wrong, threat).any()


def evaluator_repeats_itself(evaluator: Evaluator) -> None:
    model, x, y, _ = _judged()
    threat = ThreatModel("linf", Fraction(1, 100))
    state = torch.get_rng_state()
    first = survivors(evaluator, model, x, y, threat)
    assert torch.equal(torch.get_rng_state(), state), "moved the global generator"
    assert torch.equal(survivors(evaluator, model, x, y, threat), first)


def keeps_to_its_batch_size(evaluator: Evaluator) -> None:
    """No forward holds more images than the batch size."""
    model, x, y, _ = _judged()
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    survivors(evaluator, model, x, y, ThreatModel("linf", Fraction(1, 1000)))
    hook.remove()
    assert max(sizes) <= evaluator.batch_size


def names_its_stages(evaluator: Evaluator) -> None:
    """No two stages have one name, and asked twice an evaluator names the same."""
    names = [stage.name for stage in _stages(evaluator)]
    assert len(set(names)) == len(names)
    assert [stage.name for stage in _stages(evaluator)] == names


def _stages(evaluator: Evaluator) -> list[Stage]:
    return evaluator.stages(AttackContext(ThreatModel("linf", Fraction(1, 100)), (1, 8, 8), 10))


def observed_evaluator(evaluator: Evaluator) -> Tensor:
    """Survivors, their margins beyond rounding, and how many images each forward held."""
    model, x = linear_net(64).eval(), images(3)
    with torch.no_grad():
        y = model(x).argmax(1)
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    found = gathered(evaluator, model, x, y, ThreatModel("linf", Fraction(1, 1000)))
    hook.remove()
    return torch.tensor([*found.survives.tolist(), *found.margins.mul(1e4).round().tolist(), *sizes])
