"""The worst case over several evaluators, image by image."""

from dataclasses import dataclass

from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, Case, Evaluator, Stage, files_of, is_hasty, looks_of


@EVALUATORS.register("worst_case", smoke={"members": [{"name": "clean"}, {"name": "clean", "batch_size": 2}]})
@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """An image survives when it survives every member; each member sees only the survivors of the last one.

    This is not the minimum of the members' accuracies: two attacks that break different images add up. The
    order changes the cost alone (cheap members first), unless a member's noise depends on its batches.

    When to use: where several attacks are one protocol, and only their joint survivors count.

    First setting: cheap attacks first: each member sees only what survived before it.

    Args:
        members: evaluators, at least one.

    Reference: the pointwise worst case of Croce and Hein, ICML 2020.
    """

    members: list[Evaluator]

    def __post_init__(self) -> None:
        if not self.members:
            raise RobustCliError("evaluator worst_case: members is empty; name at least one evaluator")

    @property
    def batch_size(self) -> int:
        """The smallest of the members': what suits each suits all."""
        return min(member.batch_size for member in self.members)

    @property
    def looks(self) -> int:
        """The most that any member asks for."""
        return max(looks_of(member) for member in self.members)

    @property
    def files(self) -> tuple[str, ...]:
        """Those of the members."""
        return tuple(file for member in self.members for file in files_of(member))

    @property
    def is_hasty(self) -> bool:
        """Whether any member is."""
        return any(is_hasty(member) for member in self.members)

    def stages(self, case: Case) -> list[Stage]:
        return [
            stage.renamed(f"{number} ")
            for number, member in enumerate(self.members, 1)
            for stage in member.stages(case)
        ]
