"""Contract of every evaluator."""

import warnings
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustcli.attacks.settings import has_setting
from robustcli.contracts.attacks import RADII
from robustcli.contracts.model_state import found_again
from robustcli.contracts.networks import conv_net, images
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def _judged() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a model, images, labels of which every third is wrong, and a mask of the correct ones."""
    model, x = conv_net().eval(), images(7)
    with torch.no_grad():
        y = model(x).argmax(1)
    is_right = torch.arange(len(x)) % 3 != 0
    return model, x, torch.where(is_right, y, (y + 1) % 10), is_right


def gathered(evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Evidence:
    """Return the evidence of an evaluator, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gather(evaluator, model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))


def survivors(evaluator: Evaluator, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Mask of the surviving images."""
    return gathered(evaluator, model, x, y, threat).survives


def gives_a_mask(evaluator: Evaluator, norm: Norm) -> None:
    """The mask is bool (n,) on the CPU; misclassified images do not survive; x, y and the model do not change."""
    model, x, y, is_right = _judged()
    given_x, given_y = x.clone(), y.clone()
    with found_again(model):
        alive = survivors(evaluator, model, x, y, ThreatModel(norm, RADII[norm]))
    assert isinstance(alive, Tensor)
    assert alive.dtype == torch.bool
    assert alive.shape == (len(x),)
    assert alive.device.type == "cpu"
    assert not (alive & ~is_right).any(), "an image survives, but is misclassified when clean"
    assert torch.equal(x, given_x)
    assert torch.equal(y, given_y)


def keeps_correct_images_at_radius_0(evaluator: Evaluator) -> None:
    model, x, y, is_right = _judged()
    if evaluator.threat is not None and has_setting(evaluator, "eps"):
        evaluator = replace(evaluator, eps=Fraction(0))  # type: ignore[type-var]
    elif any(stage.threat is not None for stage in _stages(evaluator)):
        return  # It has its own threat model.
    assert torch.equal(survivors(evaluator, model, x, y, ThreatModel("linf", Fraction(0))), is_right)


def accepts_a_single_image(evaluator: Evaluator) -> None:
    """It works with one image, and with images that are all misclassified."""
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
    """No forward has more images than the batch size."""
    model, x, y, _ = _judged()
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    survivors(evaluator, model, x, y, ThreatModel("linf", Fraction(1, 1000)))
    hook.remove()
    assert max(sizes) <= evaluator.batch_size


def names_its_stages(evaluator: Evaluator) -> None:
    """Stages have unique names, which are the same in every call."""
    names = [stage.name for stage in _stages(evaluator)]
    assert len(set(names)) == len(names)
    assert [stage.name for stage in _stages(evaluator)] == names


def _stages(evaluator: Evaluator) -> list[Stage]:
    return evaluator.stages(AttackContext(ThreatModel("linf", Fraction(1, 100)), (1, 8, 8), 10))
