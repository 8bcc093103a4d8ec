"""Numbers that describe what members do, to see whether their settings change anything."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.architectures import ImageShape
from robustcli.attacks import Attack
from robustcli.attacks.joint_pgd import JointPgd
from robustcli.contracts import architectures, attacks, diagnostics
from robustcli.contracts.evaluators import gathered
from robustcli.contracts.networks import conv_net, gated_net, images, linear_net
from robustcli.diagnostics import Diagnostic
from robustcli.evaluators import Evaluator
from robustcli.registry.types import Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# So small that few images are broken, and a long search matters.
_SMALL = Fraction(1, 4)


@contextmanager
def sizes_of_passes(model: nn.Module) -> Iterator[list[int]]:
    """Collect the number of images of each forward."""
    sizes: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    try:
        yield sizes
    finally:
        hook.remove()


def of_architecture(build: Callable[[ImageShape], nn.Module], shape: ImageShape) -> Tensor:
    """Logits, their gradient, and the size of every weight, because parts that start as copies do not affect logits.

    Also logits in eval mode after the weights have moved, because statistics may belong to earlier weights.
    """
    network, x = architectures._body(build, shape).train(), architectures._pixels(shape).requires_grad_()
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.square().sum(), x)
    sizes = torch.tensor([parameter.numel() for parameter in network.parameters()])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
        later = network.eval()(x)
    return torch.cat([logits.detach().flatten(), grad.flatten(), sizes, later.flatten()])


def of_attack(attack: Attack, norms: tuple[Norm, ...] = tuple(attacks.RADII)) -> Tensor:
    """Everything that the attack does to a batch in its norms: images and sizes of passes."""
    # With probes, because some attacks use them.
    network, x = gated_net if isinstance(attack, JointPgd) else conv_net, images(16, 3)
    model = network(channels=3).eval()
    y = attacks._targets(model, x)
    threats = [ThreatModel(norm, attacks.RADII[norm] * share) for norm in norms for share in (1, _SMALL)]
    with sizes_of_passes(model) as sizes:
        results = [attack(model, x, y, threat, attacks._noise(16)) for threat in threats]
    return torch.cat([*(result.flatten() for result in results), torch.tensor(sizes)])


def of_evaluator(evaluator: Evaluator) -> Tensor:
    """Survivors, their rounded margins, and the number of images of each forward."""
    model, x = linear_net(64).eval(), images(3)
    with torch.no_grad():
        y = model(x).argmax(1)
    with sizes_of_passes(model) as sizes:
        found = gathered(evaluator, model, x, y, ThreatModel("linf", Fraction(1, 1000)))
    outcomes = [*found.survives.tolist(), *found.margins.mul(1e4).round().tolist(), *sizes]
    if evaluator.certifier is not None:
        for eps in (Fraction(1, 1000), Fraction(1, 100), Fraction(1, 30)):
            rng = IndexedNoise(0, torch.arange(len(x)))
            proved = evaluator.certifier.certify(model, x, y, ThreatModel("linf", eps), rng)
            outcomes += [*proved.is_certified.tolist(), proved.abstained or 0, proved.chance]
    return torch.tensor(outcomes)


def of_diagnostic(diagnostic: Diagnostic) -> Tensor:
    """All results, and the number of images of each forward."""
    model = diagnostics._network()
    with sizes_of_passes(model) as sizes:
        found = diagnostics._asked(diagnostic, model, "linf")
    return torch.tensor([*diagnostics.numbers_in(found), *sizes], dtype=torch.float64)


def of_optimizer(make: Callable[[list[dict[str, Any]], float], Optimizer]) -> Tensor:
    """A vector and three matrices, of which some optimizers treat the middle one differently, after three steps."""
    weights = [nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))]
    weights += [nn.Parameter(torch.arange(1.0, 17 + k).sin()[k:].view(4, 4)) for k in range(3)]
    optimizer = make([{"params": weights, "weight_decay": 0.0}], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        torch.cat([weight.flatten() for weight in weights]).pow(4).sum().backward()
        optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights])
