"""Detect catastrophic overfitting in the check of an epoch: robust to one step but not to many."""

from robustcli.store.records import CheckRecord

# Accuracy under many steps falls by this much below its best, while accuracy under one step stays this much above it
# (Wong et al., ICLR 2020; Andriushchenko and Flammarion, NeurIPS 2020).
_DROP = 0.2
_GAP = 0.2
# Some runs are never robust to many steps. Many runs look like this in their first epochs, so this is only tested in
# the last epoch: almost no image is correct under many steps, and most are under one.
_NOTHING = 0.1
_MOST = 0.5


def has_collapsed(check: CheckRecord, best_robust: float) -> bool:
    """Return whether robustness to many steps was lost; never without a check of robustness.

    Args:
        best_robust: highest accuracy under many steps so far.
    """
    if check.robust is None or check.fgsm is None:
        return False
    return best_robust - check.robust > _DROP and check.fgsm - check.robust > _GAP


def withstands_one_step_only(check: CheckRecord) -> bool:
    """Return whether training ended with robustness to one step and without robustness to many."""
    if check.robust is None or check.fgsm is None:
        return False
    return check.robust < _NOTHING and check.fgsm - check.robust > _MOST


def in_words(check: CheckRecord, best_robust: float) -> str:
    """Format the accuracies of an adversarial method for a message."""
    return f"accuracy {check.robust:.1%} under many steps (best {best_robust:.1%}), {check.fgsm:.1%} under one"
