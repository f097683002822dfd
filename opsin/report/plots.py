"""Plots as inline SVG, without a library: small, crisp at any size, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
TICKS = 4
BINS = 12
MAX_POINTS = 400
"""Points drawn of one line; longer ones are averaged in runs, since a pixel can show no more."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; `css` is the class that colours it, in the style sheet of the page."""

    name: str
    points: tuple[Point, ...]
    css: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from `low` to `high` on a stretch of pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Pixel of a value."""
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start (as in Adam), so that it begins at the first value."""
    average, total, result = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(average / total)
    return result


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: the means of equal runs."""
    size = math.ceil(len(points) / limit) if points else 1
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round values inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A number short enough for an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def line_plot(title: str, lines: Sequence[Line], *, from_zero: bool = False) -> str:
    """An SVG of some lines over the step number; values that are not finite are left out."""
    drawn = [(line, [p for p in line.points if math.isfinite(p[1])]) for line in lines]
    points = [point for _, found in drawn for point in found]
    if not points:
        return f'<p class="none">{escape(title)}: nothing was recorded</p>'
    x_axis = Axis(min(x for x, _ in points), max(x for x, _ in points), LEFT, WIDTH - RIGHT)
    y_axis = _value_axis([y for _, y in points], from_zero=from_zero)
    first, last = (tick_label(y) for y in (points[0][1], points[-1][1]))
    body = [_grid(x_axis, y_axis), *(_path(line, found, x_axis, y_axis) for line, found in drawn if found)]
    label = escape(f"{title}: from {first} to {last}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def histogram(values: Sequence[float], ends: tuple[float, float] | None = None) -> tuple[list[float], list[int]]:
    """Edges and counts of at most `BINS` equal bins, from the smallest value to the largest or between `ends`."""
    bins = BINS if ends else min(BINS, max(1, len(set(values))))
    numbers, edges = np.histogram(values, bins=bins, range=ends)
    return edges.tolist(), numbers.tolist()


def bar_plot(title: str, edges: Sequence[float], counts: Sequence[int], x_name: str) -> str:
    """An SVG histogram: `counts` of what lies between each two of `edges`."""
    if not any(counts):
        return f'<p class="none">{escape(title)}: nothing was recorded</p>'
    x_axis = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y_axis = _value_axis([float(count) for count in counts], from_zero=True)
    bars = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, y, right, foot = x_axis.at(low), y_axis.at(count), x_axis.at(high), y_axis.at(0)
        told = f"<title>{low:,.4g} to {high:,.4g}: {count:,}</title>"
        bars.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{max(1.0, right - x - 2):.1f}" '
            f'height="{foot - y:.1f}">{told}</rect>'
        )
    label = escape(f"{title}: {sum(counts):,} from {edges[0]:,.4g} to {edges[-1]:,.4g}", quote=True)
    body = _grid(x_axis, y_axis, x_name, whole=True) + "".join(bars)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def _value_axis(values: Sequence[float], *, from_zero: bool) -> Axis:
    low, high = (min(0.0, *values) if from_zero else min(values)), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Axis(low if from_zero else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _grid(x_axis: Axis, y_axis: Axis, x_name: str = "step", *, whole: bool = False) -> str:
    parts = []
    for value in (y for y in ticks(y_axis.low, y_axis.high) if not whole or y == int(y)):
        y = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{tick_label(value)}</text>')
    for value in (step for step in ticks(x_axis.low, x_axis.high) if step == int(step)):
        x = x_axis.at(value)
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{tick_label(value)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" text-anchor="middle" x="{middle:.0f}" y="{HEIGHT - 3}">{escape(x_name)}</text>')
    return "".join(parts)


def _path(line: Line, points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    if len(points) == 1:
        x, y = x_axis.at(points[0][0]), y_axis.at(points[0][1])
        return f'<circle class="{line.css}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(line.name)}</title></circle>'
    drawn = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in thinned(points))
    return f'<polyline class="{line.css}" points="{drawn}"><title>{escape(line.name)}</title></polyline>'
