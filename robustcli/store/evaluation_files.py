"""The files of one evaluation: at first a journal, then result, per-image results and adversarial examples."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluationFiles:
    """Files of one evaluation, in a folder with those of other evaluations.

    Args:
        folder: the folder.
        key: name of the evaluation.
    """

    folder: Path
    key: str

    @property
    def result(self) -> Path:
        """The stored `Evaluation`; if this file exists, the evaluation is finished."""
        return self.folder / f"{self.key}.json"

    @property
    def per_image(self) -> Path:
        return self.folder / f"{self.key}.csv"

    @property
    def adversarial_examples(self) -> Path:
        """Adversarial images, also under their former name from version 0.1."""
        path = self.folder / f"{self.key}.adversarial.npz"
        former = self.folder / f"{self.key}.witnesses.npz"
        return former if former.exists() and not path.exists() else path

    @property
    def journal(self) -> Path:
        return self.folder / f"{self.key}.journal"
