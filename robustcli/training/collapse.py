"""Catastrophic overfitting, told from what an epoch's check found: robust to one step, and not to many."""

from typing import Any

# Accuracy under many steps falls by this much below its best, while accuracy under one step stays this much above it
# (Wong et al., ICLR 2020; Andriushchenko and Flammarion, NeurIPS 2020).
_DROP = 0.2
_GAP = 0.2
# Some never are robust to many steps and have nothing to lose. Many pass through that in their first epochs, so it is
# asked of the last one only: next to nothing is right under many steps, and most of what could be under one.
_NOTHING = 0.1
_MOST = 0.5


def has_collapsed(record: dict[str, Any], best_robust: float) -> bool:
    """Whether robustness to many steps was lost.

    Args:
        record: of an epoch, with accuracies "robust" and "fgsm" where the method aims at robustness.
        best_robust: highest accuracy under many steps before.
    """
    if "fgsm" not in record:
        return False
    return bool(best_robust - record["robust"] > _DROP and record["fgsm"] - record["robust"] > _GAP)


def withstands_one_step_only(record: dict[str, Any]) -> bool:
    """Whether training ended without robustness to many steps, though it has robustness to one."""
    return "fgsm" in record and bool(record["robust"] < _NOTHING and record["fgsm"] - record["robust"] > _MOST)


def in_words(record: dict[str, Any], best_robust: float) -> str:
    """What was found."""
    return f"accuracy {record['robust']:.1%} under many steps (best {best_robust:.1%}), {record['fgsm']:.1%} under one"
