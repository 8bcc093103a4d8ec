"""Tables of `robust bench eval` and `robust bench autoattack`; passes are forward + gradient passes."""

from collections.abc import Iterator, Sequence

from robustcli.bench.results.autoattack import MeanPasses, SpeedBench, SpeedRow
from robustcli.bench.results.evaluation import EvaluationBench, EvaluationPasses


def evaluation_rows(benches: Sequence[EvaluationBench]) -> Iterator[dict[str, str]]:
    """Yield the rows of `robust bench eval`; passes are per image."""
    for bench in benches:
        for row in bench.rows:
            yield {
                "network": bench.subject,
                "threat": bench.threat,
                "images": str(bench.images),
                "evaluation": f"{bench.attack}: {row.name}",
                "ms per image": f"{1000 * row.seconds.median / bench.images:.2f}",
                "peak MB": row.peak,
                "time / limit": str(row.over_limit),
                "our speed / this row's: median (min-max)": row.ratio_text,
                "ours is": row.verdict or "",
                "robust": "" if row.robust is None else str(row.robust),
                "passes": _gradients(row.passes),
            }


def _gradients(passes: EvaluationPasses) -> str:
    too = f" ({passes.weight_gradients:.1f} to the weights too)" if passes.weight_gradients else ""
    return f"{passes.forwards:.1f} + {passes.gradients:.1f}{too}"


def speed_rows(benches: Sequence[SpeedBench]) -> Iterator[dict[str, str]]:
    """Yield the rows of `robust bench autoattack`."""
    for bench in benches:
        for row in bench.rows:
            survivor, broken = _passes(row)
            yield {
                "network": bench.subject,
                "threat": bench.threat,
                "images": str(bench.images),
                "engine": row.name,
                "seconds": f"{row.seconds.median:.2f}",
                "time / limit": str(row.over_limit),
                "speed: median (min-max)": "1" if row.speed is None else str(row.speed),
                "result": row.verdict or "",
                "robust": "" if row.robust is None else str(row.robust),
                "passes per survivor": survivor,
                "passes per broken image": broken,
            }


def _passes(row: SpeedRow) -> tuple[str, str]:
    """Return the passes per survivor and per broken image."""
    if isinstance(row.passes, MeanPasses):
        return f"{_pair(row.passes.mean)} (mean of all right when clean)", ""
    return _pair(row.passes.survivor), _pair(row.passes.broken)


def _pair(passes: Sequence[float]) -> str:
    return f"{passes[0]:,.0f} + {passes[1]:,.0f}"
