"""Attacks, weight perturbations, averages and schedules fulfill their contracts."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from inspect import signature
from types import ModuleType
from typing import Any

import observing
import pytest
import torch
from members import names_of, norms_known_to, smoke
from products import cover

from robustcli.contracts import attacks as attacks_contract
from robustcli.contracts import averaging as averaging_contract
from robustcli.contracts import diagnostics as diagnostics_contract
from robustcli.contracts import mixers as mixers_contract
from robustcli.contracts import preprocessors as preprocessors_contract
from robustcli.contracts import regularizers as regularizers_contract
from robustcli.contracts import schedules as schedules_contract
from robustcli.contracts import spanning
from robustcli.contracts import weights as weights_contract
from robustcli.contracts.build import build, settings_to_try
from robustcli.contracts.cases import checks_in
from robustcli.contracts.networks import conv_net, images, labels
from robustcli.diagnostics import Diagnostic
from robustcli.optimization.averaging import Averaging
from robustcli.registry.catalog import catalog
from robustcli.registry.types import AttackBn, Norm
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

pytestmark = pytest.mark.slow

of_every_attack = pytest.mark.parametrize("name", names_of("attacks"))
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
IN_NORMS_IT_KNOWS = [(name, norm) for name in names_of("attacks") for norm in norms_known_to(name)]
in_norms_it_knows = pytest.mark.parametrize(("name", "norm"), IN_NORMS_IT_KNOWS)
in_norms_it_does_not_know = pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name in names_of("attacks") for norm in NORMS if norm not in norms_known_to(name)],
)


def variants(family: str, name: str) -> list[Any]:
    """A member from its defaults and from its cheap settings."""
    member = catalog(family)[name]
    return [build(member, settings) for settings in settings_to_try(member)]


@pytest.mark.parametrize(
    ("name", "norm", "channels"),
    [(*known, channels) for known, channels in cover(IN_NORMS_IT_KNOWS, [1, 3], strength=1)],
)
def test_attack_stays_inside(name: str, norm: Norm, channels: int) -> None:
    for attack in variants("attacks", name):
        attacks_contract.stays_inside(attack, norm, channels)


def checks(module: ModuleType, *names: str) -> pytest.MarkDecorator:
    """Parametrize over the checks of a family that take a member and some arguments."""
    found = [check for check in checks_in(module) if [*signature(check).parameters][1:] == [*names]]
    return pytest.mark.parametrize("check", found, ids=lambda check: check.__name__)


@in_norms_it_knows
@checks(attacks_contract, "norm")
def test_attack(name: str, norm: Norm, check: Callable[..., None]) -> None:
    check(smoke("attacks", name), norm)


@in_norms_it_knows
def test_attack_returns_no_points_for_no_images(name: str, norm: Norm) -> None:
    found = smoke("attacks", name)(
        conv_net().eval(),
        images(0),
        labels(0),
        ThreatModel(norm, Fraction(1, 10)),
        IndexedNoise(0, torch.arange(0)),
    )
    assert found.shape == images(0).shape


@of_every_attack
@pytest.mark.parametrize("attack_bn", ["eval", "train", "batch_no_update"])
@checks(attacks_contract, "norm", "attack_bn")
def test_attack_leaves_the_model(name: str, attack_bn: AttackBn, check: Callable[..., None]) -> None:
    check(smoke("attacks", name), norms_known_to(name)[0], attack_bn)


@in_norms_it_does_not_know
def test_attack_refuses_other_norms(name: str, norm: Norm) -> None:
    attacks_contract.rejects_other_norms(smoke("attacks", name), norm)


@of_every_attack
def test_attack_reports_what_it_declares(name: str) -> None:
    member = catalog("attacks")[name]
    attacks_contract.reports_what_it_declares(smoke("attacks", name), norms_known_to(name)[0], member.metrics)


def of_parts() -> Iterator[Any]:
    """Yield members of the families whose checks take nothing else, with each of these checks."""
    for module in (
        weights_contract,
        mixers_contract,
        preprocessors_contract,
        regularizers_contract,
        schedules_contract,
    ):
        family = module.__name__.rpartition(".")[2]
        for name in names_of(family):
            for check in checks_in(module):
                yield pytest.param(family, name, check, id=f"{family}.{name}-{check.__name__}")


@pytest.mark.parametrize(("family", "name", "check"), [*of_parts()])
def test_part(family: str, name: str, check: Callable[[Any], None]) -> None:
    for part in variants(family, name):
        check(part)


@pytest.mark.parametrize("name", names_of("averaging"))
@checks(averaging_contract)
@pytest.mark.parametrize("buffers", ["copy", "average", "re_estimate"])
def test_averaging(name: str, buffers: str, check: Callable[[Averaging], None]) -> None:
    member = catalog("averaging")[name]
    own = {"buffers": buffers} if "buffers" in member.parameters else {}
    for settings in settings_to_try(member):
        check(build(member, {**settings, **own}))


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in spanning.DRIVES for name in names_of(family)]
)
def test_a_member_declares_whether_it_spans_training(family: str, name: str) -> None:
    member = catalog(family)[name]
    assert spanning.asks_for_the_length(family, smoke(family, name)) is member.spans_training
    spanning.declares_that_it_spans_training(family, smoke(family, name), member.spans_training)


def test_a_member_that_follows_training_undeclared_is_refused() -> None:
    with pytest.raises(AssertionError, match="spans_training=True"):
        spanning.declares_that_it_spans_training("schedules", smoke("schedules", "linear"), spans=False)


@pytest.mark.parametrize("name", names_of("diagnostics"))
@pytest.mark.parametrize("norm", NORMS)
@checks(diagnostics_contract, "norm")
def test_diagnostic(name: str, norm: Norm, check: Callable[[Diagnostic, Norm], None]) -> None:
    check(smoke("diagnostics", name), norm)


@pytest.mark.parametrize(
    "name", [name for name in names_of("diagnostics") if "attack" in catalog("diagnostics")[name].replaceable]
)
def test_another_attack_makes_another_finding(name: str) -> None:
    other = smoke("diagnostics", name, attack={"name": "pgd", "steps": 1, "step_size": 0.001})
    usual = observing.of_diagnostic(smoke("diagnostics", name))
    assert not torch.equal(observing.of_diagnostic(other), usual)
