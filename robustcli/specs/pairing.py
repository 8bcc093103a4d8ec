"""Guards on parts that belong together: several threat models, and a defense with its architecture."""

from collections.abc import Mapping

from robustcli.registry.catalog import Member, catalog, describe
from robustcli.registry.registry import MemberSpec
from robustcli.specs.check import family_of
from robustcli.specs.places import Findings, attacks_inside, evaluators_inside, guard, not_a_pixel
from robustcli.specs.settings import TrainSettings


@guard("refuse")
def other_eps_in_pixels(defense: MemberSpec, evaluate: Mapping[str, MemberSpec]) -> Findings:
    for number, other in enumerate(defense.parameters.get("others", ())):
        for key in ("eps", "step_size"):
            size = getattr(other, key)
            if other.norm == "linf" and size is not None and size > 1:
                yield ("defense", "others", number, key), not_a_pixel(float(size))
    for where, chosen in evaluators_inside(evaluate, ("evaluate",)):
        norm, eps = chosen.parameters.get("norm"), chosen.parameters.get("eps", 0)
        if norm == "linf" and eps > 1:
            yield (*where, "eps"), not_a_pixel(float(eps))


@guard("refuse")
def others_keep_their_radius(defense: MemberSpec, train: TrainSettings) -> Findings:
    if train.eps_warmup and defense.parameters.get("others"):
        yield ("train", "eps_warmup"), "only the spec's threat would grow, not those in defense.others; leave it out"


def _has_parts_of(architecture: MemberSpec, defense: Member) -> bool:
    """Return True if an architecture has the parts that a defense trains, by its name or settings."""
    settings = defense.trains_with
    has_settings = all(architecture.parameters.get(key) == value for key, value in settings.items())
    return architecture.name == defense.trains or (bool(settings) and has_settings)


@guard("refuse")
def architecture_has_its_parts(defense: MemberSpec, architecture: MemberSpec) -> Findings:
    member = defense.member
    if not member.trains:
        return
    if not _has_parts_of(architecture, member):
        wraps = any(family_of(part.annotation) for part in describe("architectures", member.trains).parameters.values())
        around = ", around any network" if wraps else ""
        for key, value in member.trains_with.items():
            around += f", or a network with {key}: {value}"
        text = f"'{defense.name}' trains the architecture '{member.trains}'{around}; this is"
        yield ("defense", "name"), f"{text} '{architecture.name}'"
    elif architecture.member.branches and "others" in defense.parameters:
        key = architecture.member.branches
        kinds, branches = 2 + len(defense.parameters["others"]), architecture.parameters[key]
        if branches != kinds:
            text = f"{branches}; clean images, the threat and {kinds - 2} others are {kinds} kinds; write {kinds}"
            yield ("architecture", key), text


@guard("refuse")
def parts_can_be_reached(architecture: MemberSpec, train: TrainSettings) -> Findings:
    if train.compile is not True:
        return
    for member in catalog("defenses").values():
        if member.trains and _has_parts_of(architecture, member):
            yield ("train", "compile"), f"a compiled network does not show the parts that '{member.trains}' adds"
            return


@guard("refuse")
def processes_stop_together(defense: MemberSpec, train: TrainSettings) -> Findings:
    attack_bn = defense.parameters.get("attack_bn")
    if not train.sync_batch_norm or attack_bn == "eval":
        return
    together = f"with sync_batch_norm and attack_bn {attack_bn}, all processes have to take the same steps, and"
    for where, attack in attacks_inside(defense, ("defense",)):
        if attack.member.varies_in_passes:
            text = f"'{attack.name}' takes as many as its images need; write another attack, or attack_bn: eval"
            yield where, f"{together} {text}"
        elif attack.parameters.get("keep") == "fooled":
            text = "'fooled' stops when no image is left; write best, or attack_bn: eval"
            yield (*where, "keep"), f"{together} {text}"


@guard("refuse")
def halves_stay_apart(defense: MemberSpec, data: MemberSpec, train: TrainSettings) -> Findings:
    if not defense.member.two_halves:
        return
    if train.batch_size % 2:
        text = f"{train.batch_size}; '{defense.name}' needs as many images of each half of the data, an even number"
        yield ("train", "batch_size"), text
    if data.options.mixer.name != "none":
        text = f"'{defense.name}' learns from two halves of the data, and images of both would be mixed; leave it out"
        yield ("data", "mixer"), text
    if data.options.extra is not None:
        yield ("data", "extra"), f"'{defense.name}' halves the data set's own images; leave them out"


@guard("refuse")
def branches_keep_their_statistics(architecture: MemberSpec, defense: MemberSpec) -> Findings:
    averaging = defense.parameters.get("averaging")
    buffers = averaging.parameters.get("buffers") if isinstance(averaging, MemberSpec) else None
    if architecture.member.branches and buffers == "re_estimate":
        text = "re_estimate gives every branch the statistics of clean images; write copy or average"
        yield ("defense", "averaging", "buffers"), text
