"""Contract of every attack."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.crafting import crafting
from robustcli.contracts.model_state import Failing, found_again
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.errors import RobustCliError
from robustcli.evaluation.passes import count_passes
from robustcli.registry.types import AttackBn, Norm
from robustcli.threat.noise import IndexedNoise, Noise, StreamNoise
from robustcli.threat.threat import ThreatModel

# Large enough that attacks reach the surface of the ball, and 0 or 1 in pixels near them.
RADII: dict[Norm, Fraction] = {"linf": Fraction(1, 10), "l2": Fraction(3, 4), "l1": Fraction(3)}
# So small that few images are broken, and a long search matters.
_SMALL = Fraction(1, 4)
_COUNT = 6


def _noise(count: int = _COUNT) -> IndexedNoise:
    return IndexedNoise(7, torch.arange(count))


def _threat(norm: Norm) -> ThreatModel:
    return ThreatModel(norm, RADII[norm])


def _targets(model: nn.Module, x: Tensor) -> Tensor:
    """Labels, every second one the model's prediction, because some attacks do not move misclassified images."""
    y = labels(len(x))
    with torch.no_grad():
        y[1::2] = model(x)[1::2].argmax(1)
    return y


def stays_inside(attack: Attack, norm: Norm, channels: int) -> None:
    """The result has the images' shape and dtype, is finite and in the threat set; x and y are not modified."""
    model, x = conv_net(channels).eval(), images(_COUNT, channels)
    y = _targets(model, x)
    given_x, given_y = x.clone(), y.clone()
    x_adv = attack(model, x, y, _threat(norm), _noise())
    assert torch.equal(x, given_x), "wrote into x"
    assert torch.equal(y, given_y), "wrote into y"
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert torch.isfinite(x_adv).all()
    assert _threat(norm).contains(x_adv, x).all(), "left the threat set"


def at_radius_0_returns_x(attack: Attack, norm: Norm) -> None:
    model, x = conv_net().eval(), images(_COUNT)
    y = _targets(model, x)
    assert torch.equal(attack(model, x, y, ThreatModel(norm, Fraction(0)), _noise()), x)


def reports_what_it_declares(attack: Attack, norm: Norm, metrics: tuple[str, ...]) -> None:
    """The names of its metrics are those that its registration declares."""
    model, x = conv_net().eval(), images(_COUNT)
    _, found = attack.search(model, x, _targets(model, x), _threat(norm), _noise())
    assert tuple(found) == metrics, f"reports {', '.join(found) or 'nothing'}; declare metrics={tuple(found)}"


def repeats_itself(attack: Attack, norm: Norm) -> None:
    """Equal noise gives equal results; nothing is drawn from torch's global generator."""
    model, x = conv_net().eval(), images(_COUNT)
    y = _targets(model, x)
    stream = StreamNoise.on(x.device)
    makers: tuple[Callable[[], Noise], ...] = (_noise, lambda: stream.reseed(3, "attack"))
    for make in makers:
        state = torch.get_rng_state()
        first = attack(model, x, y, _threat(norm), make())
        assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
        assert torch.equal(attack(model, x, y, _threat(norm), make()), first), "equal seeds, other images"


def treats_each_image_alone(attack: Attack, norm: Norm) -> None:
    """In eval mode, an image gives the same result in any batch and order."""
    model = conv_net(dtype=torch.float64).eval()
    x = images(_COUNT, dtype=torch.float64)
    y = _targets(model, x)
    together = attack(model, x, y, _threat(norm), _noise())
    order = torch.randperm(_COUNT, generator=torch.Generator().manual_seed(0))
    for part in (*torch.split(torch.arange(_COUNT), 1), *torch.split(torch.arange(_COUNT), 4), order):
        alone = attack(model, x[part], y[part], _threat(norm), _noise().rows(part))
        assert torch.allclose(alone, together[part], rtol=0, atol=1e-9), "depends on the other images"


def treats_class_shares_as_labels(attack: Attack, norm: Norm) -> None:
    """One-hot class shares (n, k) mean the same as labels (n,)."""
    model = conv_net(dtype=torch.float64).eval()
    x = images(_COUNT, dtype=torch.float64)
    y = _targets(model, x)
    shares = nn.functional.one_hot(y, 10).double()
    by_label, by_share = (attack(model, x, targets, _threat(norm), _noise()) for targets in (y, shares))
    assert torch.allclose(by_label, by_share, rtol=0, atol=1e-9)


def leaves_the_model_alone(attack: Attack, norm: Norm, attack_bn: AttackBn) -> None:
    """Weights, buffers, gradients, modes and requires_grad do not change, inside `crafting` and without it."""
    model, x, y = _unusual_model(), images(_COUNT), labels(_COUNT)
    with found_again(model, except_for=_moved_by(attack_bn)), crafting(model, attack_bn):
        attack(model, x, y, _threat(norm), _noise())
    # Without it, the mode is the caller's: batch norms in train mode update running statistics.
    with found_again(model, except_for=("buffer",)):
        attack(model, x, y, _threat(norm), _noise())
    model.eval()
    with found_again(model):
        attack(model, x, y, _threat(norm), _noise())


def leaves_the_model_alone_when_it_fails(attack: Attack, norm: Norm, attack_bn: AttackBn) -> None:
    """The model also does not change if a forward fails."""
    for at in (1, 2, 3):
        model, x, y = Failing(_unusual_model(), at), images(_COUNT), labels(_COUNT)
        with found_again(model, except_for=_moved_by(attack_bn)), crafting(model, attack_bn):
            attack(model, x, y, _threat(norm), _noise())
        model = Failing(_unusual_model().eval(), at).eval()
        with found_again(model):
            attack(model, x, y, _threat(norm), _noise())


def _moved_by(attack_bn: AttackBn) -> tuple[str, ...]:
    return ("buffer",) if attack_bn == "train" else ()


def _unusual_model() -> nn.Sequential:
    """A model in train mode with one batch norm in eval mode, one frozen weight and existing gradients."""
    model = conv_net(dropout=0.5).train()
    assert isinstance(model, nn.Sequential)
    model[1].eval()
    first, *others = model.parameters()
    first.requires_grad_(False)
    for parameter in others[1:]:
        parameter.grad = torch.ones_like(parameter)
    return model


def rejects_other_norms(attack: Attack, unsupported: Norm) -> None:
    """The attack rejects an unsupported norm by name, before any pass."""
    model, x, y = conv_net().eval(), images(_COUNT), labels(_COUNT)
    with count_passes(model) as passes:
        try:
            attack(model, x, y, _threat(unsupported), _noise())
        except RobustCliError as error:
            assert f"the threat is {unsupported}" in str(error), f"refused with: {error}"  # noqa: PT017
        else:
            raise AssertionError(f"attacks in {unsupported}, but does not declare it")
    assert passes.forwards == 0
