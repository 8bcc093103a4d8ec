"""Small charts as plain SVG text, in colors that a style sheet sets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 12, 40
# Height of a line of text, and width of a digit.
_LINE, _DIGIT = 18, 8
_LONGEST = 72


@dataclass(frozen=True)
class Axis:
    """Linear axis from data to pixels.

    Args:
        low, high: range of the data.
        start, end: pixels of both ends.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        """Axis that covers all values, with a margin where they are equal."""
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or abs(high) / 2 or 0.5
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        """Pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values within the range."""
        raw = (self.high - self.low) / 5
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Draw curves of (x, y) points; points that are not finite are left out. Returns "" without any point."""
    kept = {
        name: points
        for name, curve in curves.items()
        if (points := [(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)])
    }
    if not kept:
        return ""
    everything = [point for points in kept.values() for point in points]
    x_axis = Axis.over([x for x, _ in everything], _LEFT, _WIDTH - _RIGHT)
    y_axis = Axis.over([y for _, y in everything], _HEIGHT - _BOTTOM, _TOP)
    # Such as epochs, of which there are no halves.
    is_whole = all(float(x).is_integer() for x, _ in everything)
    body = _frame(x_axis, y_axis, x_label, y_label, is_whole=is_whole)
    for number, points in enumerate(kept.values()):
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)
        body.append(f'<polyline class="curve c{number % 6}" points="{path}"/>')
        if len(points) == 1:
            (x, y) = points[0]
            body.append(f'<circle class="dot c{number % 6}" cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="4"/>')
    return _svg(title, body, _HEIGHT, list(kept))


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats with a smaller or equal x and a larger y, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def scatter(
    title: str, points: Mapping[str, tuple[float, float]], x_label: str, y_label: str, *, front: bool = False
) -> str:
    """Draw one numbered point per name, with the names below. Returns "" without any point.

    Args:
        front: also draw the Pareto front; small x and large y are good.
    """
    if not points:
        return ""
    x_axis = Axis.over([x for x, _ in points.values()], _LEFT, _WIDTH - _RIGHT)
    y_axis = Axis.over([y for _, y in points.values()], _HEIGHT - _BOTTOM, _TOP)
    body = _frame(x_axis, y_axis, x_label, y_label)
    if front:
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in pareto_front(points.values()))
        body.append(f'<polyline class="front" points="{path}"/>')
    taken: list[tuple[float, float]] = []
    for number, (name, (x, y)) in enumerate(points.items()):
        left, top = x_axis.at(x), y_axis.at(y)
        row = _HEIGHT + number * _LINE + 12
        shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        place = _free_place(left, top, taken)
        taken.append(place)
        body += [
            f'<circle class="dot c{number % 6}" cx="{left:.1f}" cy="{top:.1f}" r="5"/>',
            f'<text class="label" x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="middle">{number + 1}</text>',
            f'<circle class="dot c{number % 6}" cx="{_LEFT - 40}" cy="{row - 4}" r="5"/>',
            f'<text class="label" x="{_LEFT - 28}" y="{row}">{number + 1} {escape(shown)}</text>',
        ]
    return _svg(title, body, _HEIGHT + len(points) * _LINE + 4)


def _free_place(left: float, top: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A place for a number next to a point that no other number has, or the first one if all are taken."""
    around = [(13, 4), (-13, 4), (0, -9), (0, 18), (13, -9), (-13, -9), (13, 18), (-13, 18), (28, 4), (-28, 4)]
    places = [(left + right, top + down) for right, down in around]

    def is_free(place: tuple[float, float]) -> bool:
        return all(abs(place[0] - x) > 2 * _DIGIT or abs(place[1] - y) > _LINE - 5 for x, y in taken)

    return next((place for place in places if is_free(place)), places[0])


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, *, is_whole: bool = False) -> list[str]:
    """Grid lines, tick labels and axis labels."""
    body = []
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks():
        if is_whole and not float(tick).is_integer():
            continue
        x = x_axis.at(tick)
        text = _number(tick)
        body.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    body.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    y_middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="translate(12 {y_middle}) rotate(-90)"'
    body.append(f'<text class="axis" {turned} text-anchor="middle">{escape(y_label)}</text>')
    return body


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1e-12 else "0"


# Colors of the HTML report, for separate pictures.
_STYLE = """
svg { background: #fff } text { fill: #1c2128; font: 12px "DejaVu Sans", sans-serif } .tick, .axis { fill: #57606a }
.axis { font-weight: 600 } .grid { stroke: #d0d7de } .front { fill: none; stroke: #57606a; stroke-dasharray: 5 4 }
.c0 { fill: #0969da } .c1 { fill: #bc4c00 } .c2 { fill: #1a7f37 } .c3 { fill: #8250df } .c4 { fill: #bf3989 }
.c5 { fill: #57606a }
"""


def standalone(figure: str) -> str:
    """Return the SVG of a figure as a separate file."""
    inner = figure[figure.index("<svg") : figure.index("</svg>")]
    head, _, body = inner.partition(">")
    size = f'width="{_WIDTH}" xmlns="http://www.w3.org/2000/svg"'
    return f"{head} {size}><style>{_STYLE}</style>{body}</svg>\n"


def _svg(title: str, body: Sequence[str], height: int, names: Sequence[str] = ()) -> str:
    legend = "".join(f'<span class="key c{number % 6}">{escape(name)}</span>' for number, name in enumerate(names))
    return (
        f"<figure><figcaption>{escape(title)} {legend if len(names) > 1 else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg></figure>'
    )
