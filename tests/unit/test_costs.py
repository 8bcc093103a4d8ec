"""What an update of every method costs, in passes: nothing is computed twice, and crafting leaves the weights out."""

from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
import torch
from small_networks import conv_net, gated_net, search_net
from small_steps import LINF, batch, clock, counted

from robustcli import checkpoint
from robustcli.bench.passes import passes_by_kind
from robustcli.catalog import catalog
from robustcli.defenses.alp import alp
from robustcli.defenses.dial import dial
from robustcli.defenses.dynamic_at import dynamic_at
from robustcli.defenses.fat import fat
from robustcli.defenses.fw_at import fw_at
from robustcli.defenses.half_half import half_half
from robustcli.defenses.hat import RunningHat, hat
from robustcli.defenses.mart import mart
from robustcli.defenses.min_max import MinMax, MinMaxStep
from robustcli.defenses.multi_norm import multi_norm
from robustcli.defenses.natural import natural
from robustcli.defenses.pgd_at import pgd_at
from robustcli.defenses.pyramid_at import pyramid_at
from robustcli.defenses.score import score
from robustcli.defenses.trades import trades
from robustcli.fields import Family, OtherThreat
from robustcli.noise import StreamNoise
from robustcli.registry import instantiate
from robustcli.specs.check import Checker


def against(combine: Literal["max", "average", "random", "msd"]) -> MinMax:
    others = [OtherThreat(norm="l2", eps=Fraction(1, 2)), OtherThreat(norm="l1", eps=Fraction(4))]
    return multi_norm(others=others, combine=combine)


# In units of one forward: a backward to the images costs 1, a backward to the weights 2.
UNITS = {
    "natural": (natural(), 3),
    "pgd_at": (pgd_at(), 23),
    "trades": (trades(), 27),
    "trades as released": (trades(clean_forwards=2), 30),
    "mart": (mart(), 26),
    "alp": (alp(), 26),
    "half_half": (half_half(), 26),
    "score": (score(), 27),
    "fw_at with 10 steps": (fw_at(steps=10), 23),
    "fw_at with 2 steps": (fw_at(steps=2), 7),
    "dynamic_at": (dynamic_at(), 23),
    "fat": (fat(), 23),
    # The published 18 count a sixth gradient, which is computed for the record.
    "pyramid_at": (pyramid_at(), 16),
    # A forward of three versions at once counts once here: it is three times as large.
    "multi_norm, average": (against("average"), 3 * 20 + 3),
    "multi_norm, max": (against("max"), 3 * 20 + 3 + 3),
    "multi_norm, random": (against("random"), 23),
    "multi_norm, msd": (against("msd"), 20 + 3 * 10 + 3),
    "dial": (dial(), 27),
    "dial with cross-entropy": (dial(base="ce"), 26),
}


def started(defense: MinMax) -> tuple[torch.nn.Module, MinMaxStep]:
    model = conv_net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, defense.start(model, optimizer, StreamNoise.on(torch.device("cpu")))


@pytest.mark.parametrize("name", list(UNITS))
def test_units_of_an_update(name: str) -> None:
    defense, units = UNITS[name]
    model, step = started(defense)
    with counted(model) as passes:
        step(*batch(), LINF, clock())
    assert passes.forwards + passes.input + 2 * passes.weight == units


# What these cost depends on threats that have no default.
WITHOUT_DEFAULTS = {"multi_norm", "multibn"}


@pytest.mark.parametrize("name", sorted(catalog("defenses").keys() - WITHOUT_DEFAULTS))
def test_an_update_costs_what_its_method_says(name: str) -> None:
    """Every forward and every backward is counted at the first convolution, in the first update, with the defaults."""
    said = catalog("defenses")[name].passes
    assert said is not None, "register it with passes=(forwards, backwards to the images, backwards to the weights)"
    model = {"cifs": gated_net, "dsara": search_net}.get(name, conv_net)().train()
    chosen = Checker().chosen(Family("defenses"), {"name": name}, ())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = instantiate(chosen).start(model, optimizer, StreamNoise.on(torch.device("cpu")))
    x, y = batch()
    with passes_by_kind(model) as passes:
        step(x, y, LINF, clock())
    counted_per_image = passes.per_image(len(x))
    found = (counted_per_image.forwards, counted_per_image.input_gradients, counted_per_image.weight_gradients)
    assert found == said


# The model of costs, in units of one forward, of those that the literature has counted.
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("natural", 3),
        ("fgsm", 5),
        ("rs_fgsm", 5),
        ("n_fgsm", 5),
        ("free", 3),
        ("pgd_at", 23),
        ("trades", 27),
        ("mart", 26),
    ],
)
def test_what_is_said_is_the_model(name: str, units: int) -> None:
    said = catalog("defenses")[name].passes
    assert said is not None
    assert said[0] + said[1] + 2 * said[2] == units


def test_units_of_hat_with_its_helper(tmp_path: Path) -> None:
    path = tmp_path / "helper.pt"
    checkpoint.save(path, {"spec": "", "weights": conv_net().state_dict()})
    model, step = started(hat(helper=str(path)))
    assert isinstance(step.running, RunningHat)
    with counted(model) as passes, counted(step.running.helper) as of_helper:
        step(*batch(), LINF, clock())
    assert (of_helper.forwards, of_helper.input, of_helper.weight) == (1, 0, 0)
    assert passes.forwards + passes.input + 2 * passes.weight + of_helper.forwards == 31
