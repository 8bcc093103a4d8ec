"""Accuracy against cost of several results: points, their Pareto front, a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from rich.table import Table

from robustcli.errors import RobustCliError, suggest
from robustcli.reports.charts import pareto_front, scatter, standalone
from robustcli.reports.summary import Source
from robustcli.reports.tables import plain_table
from robustcli.store.files import write_text
from robustcli.workflows.network_size import size_of_run

COSTS = {"gflops": "GFLOPs", "parameters": "million parameters"}
Points = Mapping[str, tuple[float, float]]


def points_of(sources: Sequence[Source], x: str, y: str) -> Points:
    """Cost and accuracy in percent of every experiment, its mean over the seeds.

    Args:
        x: gflops (forward pass of one image) or parameters.
        y: robust (the lowest robust accuracy), clean, or the name of an evaluation.

    Raises:
        RobustCliError: an unknown key, or no result has both.
    """
    if x not in COSTS:
        raise RobustCliError(f"--x: found '{x}'{suggest(x, COSTS)}")
    keys = {key for source in sources for key in source.results.evaluations}
    if y not in {*keys, "robust", "clean"}:
        raise RobustCliError(f"--y: found '{y}'{suggest(y, {*keys, 'robust', 'clean'})}")
    found: dict[str, list[tuple[float, float]]] = {}
    for source in sources:
        size, key = size_of_run(source.path.parent), source.results.key_of(y)
        if size is not None and key is not None:
            cost = 2 * size.macs / 1e9 if x == "gflops" else size.parameters / 1e6
            found.setdefault(source.title, []).append((cost, 100 * source.results.evaluations[key].accuracy))
    if not found:
        raise RobustCliError(f"no result has both {x} and {y}; expected finished runs")
    return {name: (points[0][0], mean(value for _, value in points)) for name, points in found.items()}


def suspects(sources: Sequence[Source], y: str) -> list[str]:
    """Experiments of which an accuracy in the picture is SUSPECT."""
    keys = [(source, source.results.key_of(y)) for source in sources]
    found = [source for source, key in keys if key and source.results.evaluations[key].verdict == "SUSPECT"]
    return list(dict.fromkeys(source.title for source in found))


def pareto_table(points: Points, x: str, y: str) -> Table:
    """One row per experiment, the cheapest first; a star marks those that no other one beats."""
    front = set(pareto_front(points.values()))
    table = plain_table(("experiment", COSTS[x], f"{y} %", "front"), text=("experiment", "front"))
    for name, point in sorted(points.items(), key=lambda item: item[1]):
        table.add_row(name, f"{point[0]:.4g}", f"{point[1]:.1f}", "*" if point in front else "")
    return table


def write_picture(path: Path, points: Points, x: str, y: str) -> None:
    """Write the points and their Pareto front as an .svg file.

    Raises:
        RobustCliError: the name of the file ends in something else.
    """
    if path.suffix.lower() != ".svg":
        raise RobustCliError(f"--out: {path}: found {path.suffix or 'no suffix'}; expected .svg")
    title = f"{y} accuracy against cost, with the Pareto front"
    write_text(path, standalone(scatter(title, points, COSTS[x], f"{y} %", front=True)))
