"""An evaluation under another threat model than the one of the spec."""

from dataclasses import dataclass, replace

from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage, without_certificates
from robustcli.registry.types import Norm, Radius
from robustcli.threat.threat import ThreatModel


@EVALUATORS.register(
    "other_threat",
    formerly="under",
    smoke={"norm": "l2", "eps": 0.5, "evaluator": {"name": "attack", "attack": "pgd"}},
)
@dataclass(frozen=True, kw_only=True)
class Under(Evaluator):
    """Run another evaluator under another threat model than the one of the spec.

    As a member of worst_case it asks that an image survives several threats at once (the union of their sets). The
    result then names the threat of the spec, and every attack under another threat names its own. `--eps` and
    `--norm` of `robust eval` change only the threat of the spec.

    When to use: to report a second norm or a larger radius than the spec's.

    First setting: evaluator: autoattack in l2 with eps 0.5 next to linf 8/255.

    Args:
        norm: linf, l2 or l1.
        eps: radius as a number or a quotient such as 8/255; pixels of [0, 1] for linf, length for l2, sum for l1.
        evaluator: evaluator to run under this threat.

    Reference: the union of Tramer and Boneh, NeurIPS 2019, and of Maini, Wong and Kolter, ICML 2020.
    """

    norm: Norm
    eps: Radius
    evaluator: Evaluator

    def __post_init__(self) -> None:
        without_certificates("other_threat", [self.evaluator])

    @property
    def threat(self) -> ThreatModel:
        """The threat model of this evaluation."""
        return ThreatModel(self.norm, self.eps)

    @property
    def batch_size(self) -> int:  # type: ignore[override]  # read only
        """The batch size of the inner evaluator."""
        return self.evaluator.batch_size

    @property
    def votes(self) -> int:
        """The votes of the inner evaluator."""
        return self.evaluator.votes

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the inner evaluator."""
        return self.evaluator.files

    def stages(self, context: AttackContext) -> list[Stage]:
        return [
            # A threat set by an inner evaluator stays.
            replace(stage.renamed(f"{self.norm} "), threat=stage.threat or self.threat)
            for stage in self.evaluator.stages(replace(context, threat=self.threat))
        ]
