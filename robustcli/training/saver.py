"""Checkpoints of a training run."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from robustcli.data.splits import Data
from robustcli.errors import RobustCliError, in_one_line
from robustcli.registry.types import exact_text
from robustcli.runtime import ranks
from robustcli.specs.spec import ExperimentSpec
from robustcli.store import files
from robustcli.store.checkpoint import Checkpoint, ResumableCheckpoint
from robustcli.store.records import CheckRecord
from robustcli.store.runs import RunFolder
from robustcli.training.loop import Training


@dataclass
class Saver:
    """Write and reload checkpoints of a training; with several processes the first one does, and the others wait."""

    spec: ExperimentSpec
    data: Data
    training: Training
    folder: RunFolder

    def save(self, evaluated: nn.Module, is_best: bool, check: CheckRecord) -> None:
        ranks.from_first(lambda: self._save(evaluated, is_best, check))

    def _save(self, evaluated: nn.Module, is_best: bool, check: CheckRecord) -> None:
        shape = self.data.shape
        checkpoint = Checkpoint(
            spec=self.spec.to_yaml(),
            shape=[shape.channels, shape.height, shape.width, shape.classes],
            classes=list(self.data.classes),
            mean=list(self.data.mean),
            std=list(self.data.std),
            data_digest=self.data.digest,
            test_digest=self.data.test_digest,
            threat={"norm": self.spec.threat.norm, "eps": exact_text(self.spec.threat.eps)},
            check=check,
            weights=evaluated.state_dict(),
            training=self.training.state(),
        )
        # Best first: a run that is killed in between writes the same best again when resumed.
        if is_best:
            checkpoint.write(self.folder.best)
            # A copy instead of a link, because changes of one file must not affect the other.
            files.copy(self.folder.best, self.folder.last)
        else:
            checkpoint.write(self.folder.last)

    def reload(self, path: Path) -> None:
        checkpoint = ranks.from_first(lambda: ResumableCheckpoint.read(path))
        stored = ExperimentSpec.parse(checkpoint.spec, f"the spec inside {path}")
        if stored.digest != self.spec.digest or stored.seed != self.spec.seed:
            raise RobustCliError(
                f"{path}: belongs to spec {stored.digest} with seed {stored.seed}, "
                f"not to {self.spec.digest} with seed {self.spec.seed}"
            )
        try:
            self.training.restore(checkpoint.training)
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Every part checks its own state, and may raise anything.
            raise RobustCliError(
                f"{path}: its state of training is damaged ({in_one_line(error)}); copy the checkpoint again, or "
                f"remove {self.folder.path} to train from the beginning"
            ) from error
