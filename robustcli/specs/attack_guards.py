"""Guards on attacks: supported norms, steps in the right unit, starts that can move, and how far the steps reach."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from robustcli.registry.registry import MemberSpec
from robustcli.specs.places import Findings, Where, attacks, guard, not_a_pixel, threat_at
from robustcli.specs.settings import ThreatSettings

# Extent of a normal start in standard deviations: one pixel in 16,000 lies farther out.
_FAR_OUT = 4


@guard("refuse")
def step_size_in_pixels(threat: ThreatSettings, defense: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Findings:
    for where, attack in attacks(defense, evaluate):
        size = attack.parameters.get("step_size")
        if threat_at(where, evaluate, threat).norm == "linf" and size is not None and size > 1:
            yield (*where, "step_size"), not_a_pixel(size)
        # Step sizes of Adam are in pixels in every norm.
        for number, size in enumerate(attack.parameters.get("step_sizes", ())):
            if size > 1:
                yield (*where, "step_sizes", number), not_a_pixel(size)


@guard("refuse")
def attack_can_start(defense: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Findings:
    for where, attack in attacks(defense, evaluate):
        if attack.parameters.get("start") != "clean":
            continue
        loss = attack.parameters.get("loss")
        if loss in attack.member.flat_at_x:
            text = f"'clean' with loss '{loss}' never moves, its gradient is zero there; write gaussian"
            yield (*where, "start"), text
        if attack.parameters.get("restarts", 1) > 1:
            yield (*where, "restarts"), "restarts from the clean image are all the same; write start: random"


@guard("refuse")
def clean_batches_can_start(defense: MemberSpec) -> Findings:
    if not defense.parameters.get("clean_batches"):
        return
    replaced = defense.parameters.get("attack")
    where, attack = (("defense", "attack"), replaced) if isinstance(replaced, MemberSpec) else (("defense",), defense)
    start = {**attack.member.replaceable, **attack.member.parameters}.get("start")
    if start is None or "clean" not in get_args(start.annotation):
        yield where, f"'{attack.name}' cannot start at the clean images, as clean_batches asks; leave that out"
    elif attack.parameters.get("start", start.default) == "clean":
        text = f"'{attack.name}' starts at the clean images in every batch; write start: random, or leave it out"
        yield ("defense", "clean_batches"), text
    elif attack.parameters.get("loss") in attack.member.flat_at_x:
        text = f"'{attack.parameters['loss']}' has no gradient at the clean images, where clean_batches starts"
        yield (*where, "loss"), f"{text}; write ce"
    elif attack.parameters.get("restarts", 1) > 1:
        text = "restarts from the clean images, where clean_batches starts, are all the same; write 1"
        yield (*where, "restarts"), text


@guard("refuse")
def attack_supports_the_norm(
    threat: ThreatSettings, defense: MemberSpec, evaluate: Mapping[str, MemberSpec]
) -> Findings:
    for where, attack in attacks(defense, evaluate):
        norm, norms = threat_at(where, evaluate, threat).norm, attack.member.norms
        if norm not in norms:
            yield where, f"'{attack.name}' supports only {' and '.join(norms)}; the threat is {norm}"


@guard("warn")
def attack_reaches_eps(threat: ThreatSettings, defense: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Findings:
    for where, radius, steps, size, eps in _walks(threat, defense, evaluate):
        if radius == 0 and steps * size < eps * (1 - 1e-9):
            yield where, f"{_count(steps)} of {size:.4g} from the clean image cannot reach eps {eps:.4g}"


@guard("note")
def attack_reaches_far_side(
    threat: ThreatSettings, defense: MemberSpec, evaluate: Mapping[str, MemberSpec]
) -> Findings:
    for where, radius, steps, size, eps in _walks(threat, defense, evaluate):
        if radius > 0 and steps * size < (eps + radius) * (1 - 1e-9):
            text = f"{_count(steps)} of {size:.4g} from a random start cannot reach the far side of the threat set"
            yield where, f"{text}, up to {eps + radius:.4g} away"


def _walks(
    threat: ThreatSettings, defense: MemberSpec, evaluate: Mapping[str, MemberSpec]
) -> Iterator[tuple[Where, float, int, float, float]]:
    """Yield for every attack with steps: place, largest distance of its start from x, steps, their length, and eps."""
    for where, spec in attacks(defense, evaluate):
        attack = spec.parameters
        steps = attack.get("steps", 1)
        if not steps or "step_size" not in attack or spec.member.goes_farther:
            continue
        size, eps = attack["step_size"], float(threat_at(where, evaluate, threat).eps)
        # By default, several steps are quarters of eps; a single step has its published length.
        if size is not None or "steps" in attack:
            yield where, _start_radius(attack, eps), steps, size or eps / 4, eps
        for number, other in enumerate(attack.get("others", ())):
            eps = float(other.eps)
            yield (*where, "others", number), _start_radius(attack, eps), steps, other.step_size or eps / 4, eps


def _start_radius(attack: Mapping[str, Any], eps: float) -> float:
    start = attack.get("start", "gaussian" if "start_std" in attack else "random")
    far_out = _FAR_OUT * float(attack.get("start_std", 0.001))
    return {"clean": 0.0, "gaussian": far_out}.get(start, eps)


def _count(steps: int) -> str:
    return f"{steps} steps" if steps > 1 else "one step"
