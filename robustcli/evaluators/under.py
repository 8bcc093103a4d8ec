"""An evaluation under a threat of its own, beside that of the spec."""

from dataclasses import dataclass, replace

from robustcli.evaluators import EVALUATORS, Case, Evaluator, Stage, files_of, is_hasty, looks_of
from robustcli.registry.types import Norm, Radius
from robustcli.threat.threat import ThreatModel


@EVALUATORS.register("under", smoke={"norm": "l2", "eps": 0.5, "evaluator": {"name": "attacked", "attack": "pgd"}})
@dataclass(frozen=True, kw_only=True)
class Under:
    """Another evaluator, under another threat than the spec's.

    As a member of worst_case it makes an image survive several threats at once (the union of their sets). The
    result then names the spec's threat, and every attack under another one says which. `--eps` and `--norm` of
    `robust eval` change the spec's threat alone.

    When to use: to report a second norm or a larger radius than the spec's.

    First setting: evaluator: autoattack in l2 with eps 0.5 next to linf 8/255.

    Args:
        norm: linf, l2 or l1.
        eps: radius as a number or a quotient such as 8/255; pixels of [0, 1] for linf, length for l2, sum for l1.
        evaluator: what is evaluated under it.

    Reference: the union of Tramer and Boneh, NeurIPS 2019, and of Maini, Wong and Kolter, ICML 2020.
    """

    norm: Norm
    eps: Radius
    evaluator: Evaluator

    @property
    def threat(self) -> ThreatModel:
        """The threat of this evaluation."""
        return ThreatModel(self.norm, self.eps)

    @property
    def batch_size(self) -> int:
        """That of the evaluator inside."""
        return self.evaluator.batch_size

    @property
    def looks(self) -> int:
        """As many as the evaluator inside asks for."""
        return looks_of(self.evaluator)

    @property
    def files(self) -> tuple[str, ...]:
        """Those of the evaluator inside."""
        return files_of(self.evaluator)

    @property
    def is_hasty(self) -> bool:
        """Whether the evaluator inside is."""
        return is_hasty(self.evaluator)

    def stages(self, case: Case) -> list[Stage]:
        return [
            # A threat further inside stays.
            replace(stage.renamed(f"{self.norm} "), threat=stage.threat or self.threat)
            for stage in self.evaluator.stages(replace(case, threat=self.threat))
        ]
