"""Files of `robust bench --out`."""

from pathlib import Path
from typing import Any

from robustcli.bench.results.architectures import ArchitectureBench
from robustcli.bench.results.autoattack import SpeedBench
from robustcli.bench.results.bases import Bench
from robustcli.bench.results.conformance import ConformanceBench
from robustcli.bench.results.data import DataBench
from robustcli.bench.results.evaluation import EvaluationBench
from robustcli.bench.results.quick import QuickBench
from robustcli.bench.results.scaling import ScalingBench
from robustcli.bench.results.training import TrainingBench
from robustcli.errors import RobustCliError
from robustcli.store.models import parsed


def parse_benches(raw: Any, path: Path | str) -> list[Bench]:
    """Return the results in a file that `--out` of one benchmark wrote.

    Raises:
        RobustCliError: the file has other contents; the message has the keys.
    """
    heads = raw if isinstance(raw, list) else [raw]
    kinds = [_kind(head) for head in heads]
    if not heads or None in kinds:
        raise RobustCliError(f"{path}: not a result of `robust bench --out`")
    return [parsed(kind, head, path) for kind, head in zip(kinds, heads, strict=True) if kind is not None]


def _kind(head: Any) -> type[Bench] | None:
    """Return the kind of a stored result by the keys that only this kind has."""
    match head:
        case {"defenses": {}}:
            return TrainingBench
        case {"bench": "evaluation"}:
            return EvaluationBench
        case {"bench": "data"}:
            return DataBench
        case {"bench": "architectures"}:
            return ArchitectureBench
        case {"bench": "scaling"}:
            return ScalingBench
        case {"bench": "quick"}:
            return QuickBench
        case {"rows": [{"part": _}, *_]}:
            return ConformanceBench
        case {"rows": [{"speed": _}, *_]}:
            return SpeedBench
    return None
