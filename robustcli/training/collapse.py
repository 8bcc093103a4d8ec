"""Detect catastrophic overfitting in the check of an epoch: robust to one step but not to many."""

from typing import Any

# Accuracy under many steps falls by this much below its best, while accuracy under one step stays this much above it
# (Wong et al., ICLR 2020; Andriushchenko and Flammarion, NeurIPS 2020).
_DROP = 0.2
_GAP = 0.2
# Some runs are never robust to many steps. Many runs look like this in their first epochs, so this is only tested in
# the last epoch: almost no image is correct under many steps, and most are under one.
_NOTHING = 0.1
_MOST = 0.5


def has_collapsed(record: dict[str, Any], best_robust: float) -> bool:
    """Return whether robustness to many steps was lost.

    Args:
        record: record of an epoch, with the accuracies "robust" and "fgsm" if the method is adversarial.
        best_robust: highest accuracy under many steps so far.
    """
    if "fgsm" not in record:
        return False
    return bool(best_robust - record["robust"] > _DROP and record["fgsm"] - record["robust"] > _GAP)


def withstands_one_step_only(record: dict[str, Any]) -> bool:
    """Return whether training ended with robustness to one step and without robustness to many."""
    return "fgsm" in record and bool(record["robust"] < _NOTHING and record["fgsm"] - record["robust"] > _MOST)


def in_words(record: dict[str, Any], best_robust: float) -> str:
    """Format the accuracies for a message."""
    return f"accuracy {record['robust']:.1%} under many steps (best {best_robust:.1%}), {record['fgsm']:.1%} under one"
