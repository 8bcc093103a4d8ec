"""Clean and robust accuracy of every class."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import logits_of, margin_pgd
from robustcli.evaluation.gather import gather
from robustcli.evaluators.attack import Attacked
from robustcli.registry.types import BatchSize
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("per_class")
@dataclass(frozen=True, kw_only=True)
class PerClass:
    """Clean and robust accuracy of every class, the worst class, and the confusion matrix under attack.

    Entry (i, j) of the matrix counts images of class i that are classified as j: the adversarial image if the attack
    succeeds, else the clean one. The diagonal counts robust images. A class without images has no accuracy.

    Args:
        attack: attack for the robust accuracy; PGD with 20 steps on the margin.

    Reference: Benz et al., "Robustness May Be at Odds with Fairness", NeurIPS workshop 2020, arXiv 2010.13365.
    """

    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=margin_pgd)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        evidence = gather(Attacked(attack=self.attack, batch_size=self.batch_size), model, x, y, threat, rng)
        classes = logits_of(model, x[:1], 1).shape[1]
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        ones = torch.ones_like(evidence.labels)
        confusion.index_put_((evidence.labels, evidence.predictions), ones, accumulate=True)
        rows = []
        for label in range(classes):
            is_of_class = evidence.labels == label
            total = int(is_of_class.sum())
            clean = int((evidence.clean == label)[is_of_class].sum())
            robust = int(evidence.survives[is_of_class].sum())
            rows.append(
                {
                    "class": label,
                    "total": total,
                    "clean_accuracy": clean / total if total else None,
                    "robust_accuracy": robust / total if total else None,
                }
            )
        robusts = torch.tensor([row["robust_accuracy"] for row in rows if row["total"]], dtype=torch.float64)
        present = [row for row in rows if row["total"]]
        worst = present[int(robusts.argmin())]
        return {
            "worst_class": worst["class"],
            "worst_robust_accuracy": worst["robust_accuracy"],
            "deviation_over_classes": float(robusts.std(correction=0)),
            "rows": rows,
            "confusion": confusion.tolist(),
        }
