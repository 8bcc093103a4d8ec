"""Outcome of a run: the parts of its results that follow from spec and checkpoints."""

from typing import Any

from robustcli.registry.types import exact_text
from robustcli.specs.check import to_plain
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import TrainingState
from robustcli.store.evaluations import Threat
from robustcli.store.provenance import Sizes
from robustcli.store.records import CheckRecord
from robustcli.store.results import Claim, Selection


def run_outcome(
    spec: ExperimentSpec, best: CheckRecord, training: TrainingState | None, sizes: Sizes
) -> dict[str, Any]:
    """Return the keys of `RunResults` that spec and checkpoints determine.

    Args:
        spec: spec of the run.
        best: check of the chosen weights.
        training: state of training in the last checkpoint; None omits the keys that depend on it.
        sizes: number of images by split.
    """
    images = "val" if sizes.val else "test" if spec.train.allow_test_selection else None
    outcome: dict[str, Any] = {
        "name": spec.name,
        "seed": spec.seed,
        "spec_digest": spec.digest,
        "threat": Threat(norm=spec.threat.norm, eps=exact_text(spec.threat.eps)),
        "selection": Selection(by=spec.train.select, images=images if spec.train.select != "last" else None),
        "epoch": best.epoch,
        "claim": Claim.model_validate(to_plain(spec.claim)) if spec.claim else None,
    }
    if training is None:
        return outcome
    status = "finished"
    if training.collapsed_at is not None:
        status = "rewound" if training.is_over else "collapsed"
    return {"status": status, **outcome, "collapsed_at": training.collapsed_at}
