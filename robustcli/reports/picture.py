"""Picture of the results of diagnostics. Needs matplotlib, which is not installed by default."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.reports.diagnostics import axes_and_grids
from robustcli.statistics import clopper_pearson

_FORMATS = (".png", ".pdf", ".svg")
_LABELS = {
    "eps": "radius eps in {norm} (pixels in [0, 1])",
    "steps": "gradient steps",
    "restarts": "restarts (0: clean)",
    "uphill": "along the gradient (multiples of eps in {norm})",
    "aside": "in a random direction (multiples of eps in {norm})",
    "alpha": "alpha (lengths of the filters)",
    "beta": "beta (lengths of the filters)",
    "loss": "mean cross-entropy (nats)",
}


def require_picture(path: Path) -> None:
    """Check early that a picture can be drawn.

    Raises:
        RobustCliError: matplotlib is missing, or the suffix of the file is unknown.
    """
    if path.suffix.lower() not in _FORMATS:
        raise RobustCliError(f"--picture: {path}: its name must end in one of {', '.join(_FORMATS)}")
    if find_spec("matplotlib") is None:
        raise RobustCliError("--picture: needs matplotlib, which is not installed: pip install matplotlib")


def draw(path: Path, title: str, found: Mapping[str, Mapping[str, Any]], norm: str) -> None:
    """Draw all curves and surfaces side by side into a file.

    Raises:
        RobustCliError: there is no curve and no surface.
    """
    figure = drawn(title, found, norm)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def drawn(title: str, found: Mapping[str, Mapping[str, Any]], norm: str) -> Any:
    """Return a figure with all curves and surfaces side by side.

    Args:
        title: title of the figure, wrapped to its width.
        found: results by diagnostic.
        norm: norm of the threat model, the unit of radii.

    Raises:
        RobustCliError: there is no curve and no surface.
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
        raise RobustCliError(f"--picture: {', '.join(found)}: no curve or surface to draw")
    # Not pyplot, which keeps figures alive and may need a display.
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    _entitle(figure, title)
    for axes, (name, key, grid_name) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if key == "curve":
            _curve(axes, name, found[name], norm)
        else:
            _surface(figure, axes, name, found[name]["surface"], grid_name, norm)
    return figure


def _entitle(figure: Any, title: str) -> None:
    """Wrap the title to the width of the figure, after a slash or a space if possible."""
    text, lines = figure.suptitle("", parse_math=False), [""]
    for piece in re.findall(r"[^/\\ ]{1,24}[/\\ ]?|[/\\ ]", title):
        text.set_text(lines[-1] + piece)
        if lines[-1] and text.get_window_extent().width > 0.95 * figure.bbox.width:
            lines.append("")
        lines[-1] += piece
    text.set_text("\n".join(lines))


def _curve(axes: Any, name: str, values: Mapping[str, Any], norm: str) -> None:
    rows = values["curve"]
    abscissa, *others = rows[0]
    accuracies = [key for key in others if key.endswith("accuracy")]
    shown = accuracies or [key for key in others if key != "correct"]
    places = [row[abscissa] for row in rows]
    for key in shown:
        (line,) = axes.plot(places, [_scaled(key, row[key]) for row in rows], marker="o", label=_text(key))
        if key in accuracies and "total" in values:
            total = values["total"]
            bounds = [clopper_pearson(round(row[key] * total), total) for row in rows]
            low, high = ([_scaled(key, end) for end in ends] for ends in zip(*bounds, strict=True))
            band = f"95 % interval, {total} images"
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0, label=band)
    if accuracies:
        axes.set_ylim(0, 100)
    if all(isinstance(place, int) for place in places):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        title=name, xlabel=_label(abscissa, norm), ylabel=" / ".join(dict.fromkeys(_label(k, norm) for k in shown))
    )
    axes.legend()


def _surface(figure: Any, axes: Any, name: str, surface: Mapping[str, Any], grid_name: str, norm: str) -> None:
    ((first, rows), (second, columns)), grids = axes_and_grids(surface)
    # Rows of the grid belong to the first axis, which is vertical.
    grid = [[_scaled(grid_name, value) for value in row] for row in grids[grid_name]]
    mesh = axes.pcolormesh(columns, rows, grid, shading="nearest")
    figure.colorbar(mesh, ax=axes, label=_label(grid_name, norm))
    axes.set(title=f"{name}: {_text(grid_name)}", xlabel=_label(second, norm), ylabel=_label(first, norm))


def _scaled(key: str, value: float) -> float:
    """Return accuracies in percent and other values unchanged."""
    return 100 * value if key.endswith("accuracy") else value


def _text(key: str) -> str:
    return key.replace("_", " ")


def _label(key: str, norm: str) -> str:
    """Return the label of an axis, with its unit."""
    if key.endswith("accuracy"):
        return f"{_text(key)} (%)"
    return _LABELS.get(key, _text(key)).format(norm=norm)
