"""What diagnostics found -> one picture. Draws with matplotlib, which is not installed by default."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.reports.findings import axes_and_grids

_FORMATS = (".png", ".pdf", ".svg")


def require_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything expensive.

    Raises:
        RobustCliError: matplotlib is missing, or the file cannot be one.
    """
    if path.suffix.lower() not in _FORMATS:
        raise RobustCliError(f"--picture: {path}: its name must end in one of {', '.join(_FORMATS)}")
    if find_spec("matplotlib") is None:
        raise RobustCliError("--picture: needs matplotlib, which is not installed: pip install 'robustcli[plots]'")


def draw(path: Path, title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw every curve and every surface side by side.

    Args:
        path: of the picture.
        title: over all of it.
        found: what was found, by diagnostic.

    Raises:
        RobustCliError: nothing in it can be drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (name, key, grid_name)
        for name, values in found.items()
        for key in ("curve", "surface")
        if key in values
        for grid_name in (axes_and_grids(values[key])[1] if key == "surface" else ("",))
    ]
    if not panels:
        raise RobustCliError(f"--picture: {', '.join(found)}: none of them has a curve or a surface")
    # No pyplot: it keeps figures alive and may look for a display.
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (name, key, grid_name) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if key == "curve":
            _curve(axes, name, found[name]["curve"])
        else:
            _surface(figure, axes, name, found[name]["surface"], grid_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _curve(axes: Any, name: str, rows: list[Mapping[str, Any]]) -> None:
    abscissa, *others = rows[0]
    shown = [key for key in others if key.endswith("accuracy")] or [key for key in others if key != "correct"]
    for key in shown:
        axes.plot([row[abscissa] for row in rows], [row[key] for row in rows], marker="o", label=key)
    if shown[0].endswith("accuracy"):
        axes.set_ylim(0, 1)
    axes.set(title=name, xlabel=abscissa)
    axes.legend()


def _surface(figure: Any, axes: Any, name: str, surface: Mapping[str, Any], grid_name: str) -> None:
    ((first, rows), (second, columns)), grids = axes_and_grids(surface)
    # Rows of the grid belong to the first axis, which is drawn upwards.
    mesh = axes.pcolormesh(columns, rows, grids[grid_name], shading="nearest")
    figure.colorbar(mesh, ax=axes)
    axes.set(title=f"{name}: {grid_name}", xlabel=second, ylabel=first)
