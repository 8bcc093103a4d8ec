"""Writes files of results for tests of their readers."""

import json
from pathlib import Path
from typing import Any

from robustcli.store.evaluations import Evaluation, Threat
from robustcli.store.provenance import DataRecord, Sizes
from robustcli.store.results import RunResults, Selection

DATA = DataRecord(digest="d" * 64, sizes=Sizes(train=10, val=5, test=5), decode="")


def evaluation(survivors: Any, **changed: Any) -> dict[str, Any]:
    """An entry under `evaluations`: PGD-20 in linf 8/255."""
    return {
        "evaluator": "attack",
        "parameters": {"attack": {"name": "pgd", "steps": 20, "restarts": 1}, "batch_size": 250},
        "norm": "linf",
        "eps": "8/255",
        "seed": 0,
        "survivors": survivors,
        "forwards": 0,
        "gradients": 0,
        "seconds": 1.5,
        "stages": [],
        "suspicions": [],
        "warnings": [],
        "fingerprint": None,
        **changed,
    }


def run_results(evaluations: dict[str, Any] | None = None, **changed: Any) -> RunResults:
    """Results of a finished run."""
    found = {key: Evaluation.model_validate(value) for key, value in (evaluations or {}).items()}
    plain: dict[str, Any] = {
        "name": "stored",
        "status": "finished",
        "seed": 0,
        "spec_digest": "01234567",
        "threat": Threat(norm="linf", eps="8/255"),
        "data": DATA,
        "selection": Selection(by="last", images=None),
        "epoch": 0,
        "collapsed_at": None,
        "evaluations": found,
        **changed,
    }
    return RunResults(**plain)


def write_raw(path: Path, digest: str = "d" * 64, schema: int = 2, **evaluations: Any) -> Path:
    """Write results of a run as they are given, valid or not."""
    plain = run_results().to_json()
    data = {**DATA.to_json(), "digest": digest}
    path.write_text(json.dumps({**plain, "schema": schema, "data": data, "evaluations": evaluations}))
    return path
