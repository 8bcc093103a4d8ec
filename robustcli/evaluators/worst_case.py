"""The worst case over several evaluators, image by image."""

from dataclasses import dataclass

from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage, without_certificates


@EVALUATORS.register("worst_case", smoke={"members": [{"name": "clean"}, {"name": "clean", "batch_size": 2}]})
@dataclass(frozen=True, kw_only=True)
class WorstCase(Evaluator):
    """An image survives if it survives every member. Each member sees only the survivors of the members before it.

    The result can be lower than every member's accuracy, because two attacks may break different images. The order
    changes only the cost (put cheap members first), unless a member's noise depends on its batches. Attacks on a random
    sample, as in quick, come last, because the sample stands for the images that survive all others.

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
        without_certificates("worst_case", self.members)

    @property
    def batch_size(self) -> int:  # type: ignore[override]  # read only
        """The smallest batch size of the members."""
        return min(member.batch_size for member in self.members)

    @property
    def votes(self) -> int:
        """The largest number of votes of the members."""
        return max(member.votes for member in self.members)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of all members."""
        return tuple(file for member in self.members for file in member.files)

    def stages(self, context: AttackContext) -> list[Stage]:
        stages = [
            stage.renamed(f"{number} ")
            for number, member in enumerate(self.members, 1)
            for stage in member.stages(context)
        ]
        return sorted(stages, key=_is_sampled)


def _is_sampled(stage: Stage) -> int:
    """1 for attacks on a sample, 2 for those on nothing else."""
    return 0 if stage.subset is None else 1 if stage.nearest is not None else 2
