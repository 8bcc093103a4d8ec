"""Equal budgets for attacks: choose the steps of an attack so that its passes stay within a limit."""

import re
from dataclasses import dataclass, replace

from robustcli.errors import RobustCliError
from robustcli.evaluators import AttackContext, Evaluator
from robustcli.models.open import OpenedModel
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.workflows.plan.evaluations import Probe

# Attributes of `Work`.
_UNITS = ("forwards", "gradients", "passes")
# Images on which passes are counted.
_COUNTED = 4


@dataclass(frozen=True)
class Budget:
    """Maximum number of passes per image for an attack, including the one that confirms its result.

    Args:
        unit: forwards, gradients, or passes for the sum of both.
        limit: maximum number.
    """

    unit: str
    limit: int

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read "forwards=1000".

        Raises:
            RobustCliError: the text has another form.
        """
        found = re.fullmatch(r"(\w+)=(\d+)", text.replace(",", "").replace("_", ""))
        if found is None or found[1] not in _UNITS or not int(found[2]):
            raise RobustCliError(f"--budget: found '{text}'; expected {', '.join(f'{unit}=N' for unit in _UNITS)}")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.unit}={self.limit}"


def within_budget(choice: MemberSpec, budget: Budget, opened: OpenedModel) -> MemberSpec:
    """Return an evaluator whose attack takes as many steps as the budget allows.

    The passes of an attack are counted in two short attacks on images that it cannot break, and are linear in its
    steps. An attack that stops early spends less on images that it breaks.

    Raises:
        RobustCliError: the attack has no number of steps, is one of several, or one step is more than the budget.
    """
    if choice.member.without_attack:
        return choice
    attack, length = attack_with_length(choice)
    name = attack.name
    fixed, of_a_step = _passes(instantiate(choice), budget.unit, opened)
    if of_a_step <= 0:
        raise RobustCliError(f"--budget: '{name}' uses no {budget.unit}; expected {_UNITS[0]}=N or {_UNITS[2]}=N")
    steps = int((budget.limit - fixed) / of_a_step + 1e-6)
    if steps < 1:
        raise RobustCliError(f"--budget: {budget}: one of the {length} of '{name}' takes {fixed + of_a_step:g}")
    limited = replace(attack, parameters={**attack.parameters, length: steps})
    return replace(choice, parameters={**choice.parameters, "attack": limited})


def attack_with_length(choice: MemberSpec, asked: str | None = None) -> tuple[MemberSpec, str]:
    """Return the attack of an evaluator, and the name of its number of steps or queries.

    Args:
        asked: the user's name for the evaluator, for messages.

    Raises:
        RobustCliError: the evaluator has no attack, or one without such a number.
    """
    attack = choice.parameters.get("attack")
    length = instantiate(attack).length if isinstance(attack, MemberSpec) else ""
    if not isinstance(attack, MemberSpec) or length not in attack.parameters:
        name = attack.name if isinstance(attack, MemberSpec) else asked or choice.name
        raise RobustCliError(
            f"--budget: '{name}' has no number of steps or queries; expected attacks such as pgd, apgd or square"
        )
    return attack, length


def _passes(evaluator: Evaluator, unit: str, opened: OpenedModel) -> tuple[float, float]:
    """Return the passes for an image without any step, and those of one step."""
    network, threat = opened.loaded.network, opened.threat
    x, _ = opened.data.evaluation("test", min(_COUNTED, opened.data.sizes.test))
    probe = Probe(network, x, threat)
    (stage,) = evaluator.stages(AttackContext(threat, (x.shape[1], x.shape[2], x.shape[3]), probe.classes))
    without, of_a_step = probe.without_and_of_a_step(stage, threat)
    return getattr(without, unit), getattr(of_a_step, unit)
