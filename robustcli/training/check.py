"""The check after every epoch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.crafting import evaluating
from robustcli.attacks.fgsm import Fgsm
from robustcli.attacks.pgd import Pgd
from robustcli.data.splits import Data, SplitName
from robustcli.defenses import Defense
from robustcli.diagnostics.one_step import monitors
from robustcli.evaluation.gather import gather
from robustcli.evaluators import Evaluator
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.clean import Clean
from robustcli.runtime import ranks
from robustcli.runtime.ranks import Slice
from robustcli.specs.settings import TrainSettings
from robustcli.store.records import CheckRecord
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class Check:
    """Accuracy on the images for selecting weights, or on training images if there are none.

    For single-step methods it also records the early signs of catastrophic overfitting.
    """

    settings: TrainSettings
    defense: Defense
    data: Data
    threat: ThreatModel

    @property
    def split(self) -> SplitName:
        if self.data.sizes.val:
            return "val"
        return "test" if self.settings.allow_test_selection else "train"

    @property
    def count(self) -> int:
        """Number of images to check."""
        return min(self.settings.check_examples, self.data.size(self.split))

    @property
    def evaluators(self) -> dict[str, Evaluator]:
        """Evaluator of each accuracy."""
        if not self.defense.is_adversarial and self.settings.select != "robust":
            return {"clean": Clean()}
        many_steps = Pgd(steps=self.settings.check_steps, keep="fooled")
        return {"clean": Clean(), "robust": Attacked(attack=many_steps), "fgsm": Attacked(attack=Fgsm())}

    @property
    def watches_one_step(self) -> bool:
        """Whether to record early signs of catastrophic overfitting."""
        return self.defense.is_single_step and "robust" in self.evaluators

    def __call__(self, network: nn.Module) -> CheckRecord:
        x, y = self.data.evaluation(self.split, self.count)
        rng = IndexedNoise(0, torch.arange(self.count, device=x.device))
        with evaluating(network):
            found = {name: self._accuracy(evaluator, network, x, y) for name, evaluator in self.evaluators.items()}
            if self.watches_one_step:
                steps, batch_size = self.settings.check_steps, self.settings.batch_size
                found |= ranks.from_first(
                    lambda: monitors(network, x, y, self.threat, rng, steps=steps, batch_size=batch_size)
                )
        return CheckRecord.model_validate({"checked_on": self.split, **found})

    def _accuracy(self, evaluator: Evaluator, network: nn.Module, x: Tensor, y: Tensor) -> float:
        """Return the share of surviving images; each process attacks its slice of them."""
        part = Slice.of(self.count)
        rows = torch.arange(part.start, part.stop, device=x.device)
        survives = torch.zeros((), dtype=torch.float64, device=x.device)
        if len(part):
            survives += gather(evaluator, network, x[rows], y[rows], self.threat, IndexedNoise(0, rows)).survives.sum()
        return float(ranks.total(survives)) / self.count
