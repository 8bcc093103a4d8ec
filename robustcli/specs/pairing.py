"""Guards on what belongs together: a threat and others beside it, a defense and the architecture that it trains."""

from collections.abc import Mapping

from robustcli.registry.registry import MemberSpec
from robustcli.specs.places import Findings, evaluators_inside, not_a_pixel
from robustcli.specs.settings import TrainSettings

# Defenses that train one architecture, of the same name.
PAIRED = ("multibn", "cifs", "dsara")
# Of these, the one whose architecture is no other network with something added.
_SEARCH = "dsara"
# And the one whose parts networks can also have of themselves, as their channel_gate.
_GATES = "cifs"


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


def others_keep_their_radius(defense: MemberSpec, train: TrainSettings) -> Findings:
    if train.eps_warmup and defense.parameters.get("others"):
        yield ("train", "eps_warmup"), "only the spec's threat would grow, not those in defense.others; leave it out"


def _has_gates_to_train(architecture: MemberSpec) -> bool:
    return architecture.parameters.get("channel_gate") == _GATES


def architecture_has_its_parts(defense: MemberSpec, architecture: MemberSpec) -> Findings:
    if defense.name == _GATES and _has_gates_to_train(architecture):
        return
    if defense.name in PAIRED and architecture.name != defense.name:
        around = "" if defense.name == _SEARCH else ", around any network"
        if defense.name == _GATES:
            around += f", or a network with channel_gate: {_GATES}"
        text = f"'{defense.name}' trains the architecture '{defense.name}'{around}; this is"
        yield ("defense", "name"), f"{text} '{architecture.name}'"
    elif defense.name == "multibn":
        kinds, branches = 2 + len(defense.parameters["others"]), architecture.parameters["branches"]
        if branches != kinds:
            text = f"{branches}; clean images, the threat and {kinds - 2} others are {kinds} kinds; write {kinds}"
            yield ("architecture", "branches"), text


def parts_can_be_reached(architecture: MemberSpec, train: TrainSettings) -> Findings:
    added = _GATES if _has_gates_to_train(architecture) else architecture.name
    if added in PAIRED and train.compile:
        yield ("train", "compile"), f"a compiled network does not show the parts that '{added}' adds"


def halves_stay_apart(defense: MemberSpec, data: MemberSpec, train: TrainSettings) -> Findings:
    if defense.name != _SEARCH:
        return
    if train.batch_size % 2:
        text = f"{train.batch_size}; '{defense.name}' needs as many images of each half of the data, an even number"
        yield ("train", "batch_size"), text
    if data.options.mixer.name != "none":
        text = f"'{defense.name}' learns from two halves of the data, and images of both would be mixed; leave it out"
        yield ("data", "mixer"), text
    if data.options.extra is not None:
        yield ("data", "extra"), f"'{defense.name}' halves the data set's own images; leave them out"


def branches_keep_their_statistics(architecture: MemberSpec, defense: MemberSpec) -> Findings:
    averaging = defense.parameters.get("averaging")
    buffers = averaging.parameters.get("buffers") if isinstance(averaging, MemberSpec) else None
    if architecture.name == "multibn" and buffers == "re_estimate":
        text = "re_estimate gives every branch the statistics of clean images; write copy or average"
        yield ("defense", "averaging", "buffers"), text
