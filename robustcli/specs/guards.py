"""Checks of combinations of settings, which give errors, warnings or notes.

A guard is a function whose parameters name the parts of the spec that it checks. It runs when these parts are valid,
even if other parts are not. Facts about a member are declared at its registration.
"""

from collections.abc import Mapping
from fractions import Fraction
from inspect import signature
from typing import Any

from robustcli.errors import suggest
from robustcli.registry.catalog import catalog
from robustcli.registry.registry import MemberSpec
from robustcli.specs import attack_guards, data_guards, pairing  # noqa: F401  (registers their guards)
from robustcli.specs.places import GUARDS, Findings, Level, Where, attacks_inside, guard, not_a_pixel
from robustcli.specs.settings import Claim, ThreatSettings, TrainSettings


def findings(level: Level, parts: Mapping[str, Any]) -> list[tuple[Where, str]]:
    """Return the combinations that the guards of a level find, with the place of each."""
    found: list[tuple[Where, str]] = []
    for check in GUARDS[level]:
        needs = signature(check).parameters
        if all(name in parts for name in needs):
            found += check(**{name: parts[name] for name in needs})
    return found


@guard("refuse")
def eps_in_pixels(threat: ThreatSettings) -> Findings:
    if threat.norm == "linf" and threat.eps > 1:
        yield ("threat", "eps"), not_a_pixel(float(threat.eps))


@guard("refuse")
def warmups_end(train: TrainSettings) -> Findings:
    if train.eps_warmup > train.epochs > 0:
        yield ("train", "eps_warmup"), f"{train.eps_warmup:g} epochs are more than the {train.epochs} of the run"
    if train.eps_warmup_form != "line" and not train.eps_warmup:
        yield ("train", "eps_warmup_form"), f"'{train.eps_warmup_form}', but eps_warmup is 0; leave it out"
    warmup = train.schedule.parameters.get("warmup", 0)
    cooldown = train.schedule.parameters.get("cooldown", 0)
    if warmup >= train.epochs > 0:
        yield ("train", "schedule", "warmup"), f"{warmup:g} epochs leave nothing of the {train.epochs} of the run"
    elif warmup + cooldown >= train.epochs > 0:
        text = f"{cooldown:g} epochs after a warm-up of {warmup:g} leave nothing of the {train.epochs} of the run"
        yield ("train", "schedule", "cooldown"), text
    if train.schedule.parameters.get("initial") and "warmup" in train.schedule.parameters and not warmup:
        yield ("train", "schedule", "initial"), "there is no warm-up that would begin with it; write a warmup"


@guard("refuse")
def schedule_inside_run(train: TrainSettings) -> Findings:
    settings = train.schedule.parameters
    for key, shares in (("peak", (settings.get("peak", 0.5),)), ("at", settings.get("at", ()))):
        if not all(0 < share < 1 for share in shares):
            yield ("train", "schedule", key), "shares of the run lie between 0 and 1, both excluded"


@guard("refuse")
def drops_are_in_order(train: TrainSettings) -> Findings:
    after, factor = train.schedule.parameters.get("after", ()), train.schedule.parameters.get("factor")
    if any(epochs < 1 for epochs in after):
        yield ("train", "schedule", "after"), f"{list(after)}: a drop needs at least one epoch before it"
    elif isinstance(factor, tuple) and list(after) != sorted(set(after)):
        text = f"{list(after)} with one factor for each; expected rising numbers, such as {sorted(set(after))}"
        yield ("train", "schedule", "after"), text


@guard("refuse")
def momentum_has_a_range(train: TrainSettings) -> Findings:
    cycle = train.schedule.parameters.get("momentum")
    if cycle is not None and cycle[0] > cycle[1]:
        low, high = cycle
        text = f"[{low:g}, {high:g}]; expected the lowest first, then the highest; write [{high:g}, {low:g}]"
        yield ("train", "schedule", "momentum"), text


@guard("refuse")
def nesterov_has_momentum(train: TrainSettings) -> Findings:
    settings = train.optimizer.parameters
    if settings.get("nesterov") and settings.get("momentum") == 0:
        yield ("train", "optimizer", "nesterov"), "true needs a momentum above 0"


@guard("refuse")
def evaluated_attack_stays_inside(evaluate: Mapping[str, MemberSpec]) -> Findings:
    for key, evaluator in evaluate.items():
        for where, attack in attacks_inside(evaluator, ("evaluate", key)):
            clip = attack.parameters.get("clip", 1)
            if clip is None or clip > 1:
                yield (
                    (*where, "clip"),
                    "its images would leave the threat set; write 1 or less (training may go beyond)",
                )


@guard("refuse")
def gradient_can_be_differentiated(defense: MemberSpec, train: TrainSettings) -> Findings:
    name = next((part.name for part in _penalizing(defense) if part.member.second_derivatives), None)
    if name is None:
        return
    if train.precision not in ("auto", "fp32"):
        text = f"{train.precision} is too coarse for the second derivatives of '{name}'; write fp32"
        yield ("train", "precision"), text
    if train.compile is True:
        yield ("train", "compile"), f"a compiled network has no second derivatives, which '{name}' takes"


@guard("refuse")
def precision_can_be_compiled(train: TrainSettings) -> Findings:
    if train.compile is True and train.precision == "fp16":
        yield ("train", "compile"), "passes in fp16 are not compiled; write train.precision: bf16, or compile: false"


@guard("refuse")
def claim_is_evaluated(claim: Claim | None, evaluate: Mapping[str, MemberSpec]) -> Findings:
    for metric in claim.metrics if claim else ():
        if metric not in evaluate:
            yield ("claim", "metrics", metric), f"is not evaluated{suggest(metric, evaluate)}"


@guard("warn")
def eps_is_exact(threat: ThreatSettings) -> Findings:
    usual = Fraction(8, 255)
    if threat.norm == "linf" and threat.eps != usual and abs(threat.eps - usual) < Fraction(1, 1000):
        text = (
            f"{float(threat.eps):g} is near 8/255 = 0.031373 and not equal to it; results differ by 0.4 to 0.8 points"
        )
        yield ("threat", "eps"), text


@guard("warn")
def parts_begin(defense: MemberSpec, train: TrainSettings) -> Findings:
    for part in ("weights", "averaging"):
        chosen = defense.parameters.get(part)
        if not isinstance(chosen, MemberSpec):
            continue
        for key in ("warmup", "start_epoch"):
            epochs = chosen.parameters.get(key)
            if epochs is not None and epochs >= train.epochs > 0:
                yield ("defense", part, key), f"{epochs:g} epochs of {train.epochs}: '{chosen.name}' never begins"


@guard("refuse")
def averages_are_many(defense: MemberSpec) -> Findings:
    averaging, replays = defense.parameters.get("averaging"), defense.parameters.get("replays", 1)
    if isinstance(averaging, MemberSpec) and "start_epoch" in averaging.parameters and replays > 1:
        text = (
            f"'{averaging.name}' takes in the weights of epochs, and '{defense.name}' makes {replays} updates on each"
        )
        yield ("defense", "averaging"), f"{text} batch in as many times fewer of them; write ema, which counts updates"


@guard("warn")
def drops_happen(train: TrainSettings) -> Findings:
    late = [epochs for epochs in train.schedule.parameters.get("after", ()) if epochs >= train.epochs]
    if late:
        yield ("train", "schedule", "after"), f"{late} lie at or beyond the end of {train.epochs} epochs"


@guard("refuse")
def replaced_part_has_no_parameters(defense: MemberSpec) -> Findings:
    member = defense.member
    for part, keys in member.served.items():
        if not isinstance(defense.parameters.get(part), MemberSpec):
            continue
        for key, parameter in member.parameters.items():
            if key in keys and defense.parameters[key] != parameter.default:
                text = f"has no effect, because defense.{part} replaces the {part}; write it there"
                yield ("defense", key), text


@guard("refuse")
def schedule_has_its_attack(defense: MemberSpec) -> Findings:
    attack, key = defense.parameters.get("attack"), defense.member.sets
    if key and isinstance(attack, MemberSpec) and key not in attack.parameters:
        able = [name for name, member in catalog("attacks").items() if key in member.parameters]
        text = f"'{defense.name}' changes the {key} of its attack; '{attack.name}' has none, {', '.join(able)} does"
        yield ("defense", "attack"), text


@guard("refuse")
def attack_is_measured(defense: MemberSpec) -> Findings:
    attack, metric = defense.parameters.get("attack"), defense.member.measures
    if metric and isinstance(attack, MemberSpec) and metric not in attack.member.metrics:
        able = [name for name, member in catalog("attacks").items() if metric in member.metrics]
        text = f"'{defense.name}' measures the {metric} of its attack; '{attack.name}' reports none"
        yield ("defense", "attack"), f"{text}, {', '.join(able)} does"


@guard("refuse")
def stages_are_counted(defense: MemberSpec) -> Findings:
    patiences, after = defense.parameters.get("patiences"), defense.parameters.get("after")
    if patiences is not None and after is not None and len(patiences) != len(after) + 1:
        text = f"has {len(patiences)} entries and 'after' has {len(after)}; expected one more than in 'after'"
        yield ("defense", "patiences"), text


@guard("refuse")
def features_can_be_read(defense: MemberSpec, train: TrainSettings) -> Findings:
    for part in _penalizing(defense):
        if part.member.reads and train.compile is True:
            yield ("train", "compile"), f"a compiled network does not show {part.member.reads} that '{part.name}' reads"


@guard("refuse")
def distortion_is_reachable(defense: MemberSpec) -> Findings:
    most = defense.parameters.get("max_distortion")
    if most is not None and not 1 / 3 < most <= 1:
        text = f"{most:g} is outside (1/3, 1], where the distortion of two steps lies; try 0.9"
        yield ("defense", "max_distortion"), text


@guard("warn")
def distortion_tells(defense: MemberSpec) -> Findings:
    most = defense.parameters.get("max_distortion")
    if most is not None and 1 / 3 < most <= 0.745:
        yield (
            ("defense", "max_distortion"),
            f"{most:g}: two steps of independent signs reach 0.745, so steps would be taken away without cause",
        )


@guard("warn")
def randomness_is_averaged(architecture: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Findings:
    chosen = architecture.options.preprocess
    if chosen.parameters.get("votes", 1) == 1:
        return
    for key, evaluator in evaluate.items():
        if evaluator.parameters.get("version", "rand") != "rand":
            text = f"'{chosen.name}' is random, and one gradient says little; write rand, which takes the mean of many"
            yield ("evaluate", key, "version"), text


def _penalizing(defense: MemberSpec) -> list[MemberSpec]:
    """Return the defense and its regularizer, if any."""
    regularizer = defense.parameters.get("regularizer")
    return [defense, regularizer] if isinstance(regularizer, MemberSpec) else [defense]
