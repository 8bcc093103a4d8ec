"""Contract of the declared cost of an update."""

from dataclasses import astuple
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.crafting import crafting
from robustcli.contracts.build import build, usual_norm
from robustcli.contracts.defenses import THREAT, batch, network_for
from robustcli.contracts.networks import conv_net, images
from robustcli.data.targets import Labels
from robustcli.evaluation.gather import gather
from robustcli.measuring.passes import passes_by_kind
from robustcli.optimization.progress import Progress
from robustcli.registry.catalog import Member
from robustcli.threat.noise import IndexedNoise, StreamNoise
from robustcli.threat.threat import ThreatModel

Cost = tuple[float, ...]
# A radius at which no image is broken.
_HARMLESS = Fraction(1, 100_000)


def cost_of_update(member: Member) -> Cost:
    """Count the passes of the first update of a defense with its defaults and the required settings of `smoke`.

    Forwards and backwards are counted at the first convolution. If images leave an attack early, it is
    the largest count.
    """
    defense = build(member, member.given)
    model = network_for(defense).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = defense.start(model, optimizer, StreamNoise.on(torch.device("cpu")))
    x, y = batch()
    with no_early_exit(), passes_by_kind(model) as passes:
        step(x, Labels.of(y), THREAT, Progress(0, 4, 10))
    return astuple(passes.per_image(len(x)))


def cost_of_attack(member: Member) -> Cost:
    """Count the passes of an attack with its defaults, for each of two images that it cannot break."""
    attack = build(member, member.given)
    model, x, y = _images_to_break()
    threat = ThreatModel(usual_norm(member), _HARMLESS)
    with no_early_exit(), crafting(model, "eval"), passes_by_kind(model) as passes:
        attack(model, x, y, threat, IndexedNoise(0, torch.arange(len(x))))
    return astuple(passes.per_image(len(x)))


def cost_of_evaluation(member: Member) -> Cost:
    """Count the passes of an evaluator with its defaults, for each of two images that it cannot break."""
    model, x, y = _images_to_break()
    rng = IndexedNoise(0, torch.arange(len(x)))
    with passes_by_kind(model) as passes:
        gather(build(member, member.given), model, x, y, ThreatModel("linf", _HARMLESS), rng)
    return astuple(passes.per_image(len(x)))


def _images_to_break() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network with 10 classes and images that it classifies correctly."""
    model, x = conv_net(3).eval(), images(2, 3)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def costs_at_most_what_it_declares(member: Member) -> None:
    """An attack or an evaluator takes at most the declared passes for an image that it does not break."""
    assert member.passes is not None
    found = (cost_of_attack if member.family == "attacks" else cost_of_evaluation)(member)
    is_less = all(count <= declared for count, declared in zip(found, member.passes, strict=True))
    assert is_less, f"an image takes {found} passes; the registration declares {member.passes}"


def costs_what_it_declares(member: Member) -> None:
    """An update costs the declared passes."""
    found = cost_of_update(member)
    assert found == member.passes, f"an update takes {found} passes; the registration declares {member.passes}"
