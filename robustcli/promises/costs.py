"""Promises of the declared cost of an update."""

from dataclasses import astuple

import torch

from robustcli.attacks.active_set import no_early_exit
from robustcli.data.targets import Labels
from robustcli.measuring.passes import passes_by_kind
from robustcli.optimization.progress import Progress
from robustcli.promises.build import build
from robustcli.promises.defenses import THREAT, batch, network_for
from robustcli.registry.catalog import Member
from robustcli.threat.noise import StreamNoise

Cost = tuple[float, ...]


def cost_of_update(member: Member) -> Cost:
    """Count the passes of the first update of a defense with its defaults and the required settings of `smoke`.

    Every forward and every backward is counted at the first convolution. Where images leave an attack early, it is
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


def costs_what_it_declares(member: Member) -> None:
    """An update costs the declared passes."""
    found = cost_of_update(member)
    assert found == member.passes, f"an update takes {found} passes; the registration declares {member.passes}"
