"""Curves and bars as SVG that takes its colors from the page."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from llama_jax.core.recording.pages import few_digits

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_SMOOTH_FROM = 40
"""Points of a curve from which its moving mean is drawn over it."""


class Chart(NamedTuple):
    """A curve by step, and what is beside it."""

    title: str
    unit: str
    points: Points
    marks: Points = ()
    """What was measured on held-out data."""
    target: float | None = None
    """A level to compare with."""


def chart_svg(chart: Chart) -> str:
    """The chart, as wide as there is room."""
    every = [*chart.points, *chart.marks]
    values = [value for _, value in every] + ([] if chart.target is None else [chart.target])
    low, high = _padded(min(values), max(values))
    first, last = min(step for step, _ in every), max(step for step, _ in every)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / max(1, last - first) * (_WIDTH - _LEFT - _RIGHT)
        up = (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    def line(points: Points, kind: str) -> str:
        placed = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        return f'<polyline class="{kind}" points="{placed}"/>'

    parts = []
    for level in _levels(low, high):
        _, y = place(first, level)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{few_digits(level)}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = place(step, low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{step:,.0f}</text>')
    if chart.target is not None:
        parts.append(line([(first, chart.target), (last, chart.target)], "target"))
    smooth = len(chart.points) >= _SMOOTH_FROM
    parts.append(line(chart.points, "raw" if smooth else "curve"))
    if smooth:
        parts.append(line(_moving_mean(chart.points), "curve"))
    parts += ['<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="3.2"/>'.format(*place(*mark)) for mark in chart.marks]
    label = html.escape(
        f"{chart.title} by step, from {few_digits(values[0])} to {few_digits(chart.points[-1][1])}", quote=True
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _levels(low: float, high: float) -> list[float]:
    """Round numbers between, six at the most."""
    step, levels = 10.0 ** math.floor(math.log10(high - low)), [low, high]
    for part in (0.2, 0.5, 1.0, 2.0, 5.0):
        levels = [number * step * part for number in range(_ceil(low / step / part), _ceil(high / step / part))]
        if len(levels) <= 6:
            break
    return levels


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)


def _moving_mean(points: Points) -> Points:
    half = max(1, len(points) // 30)
    found: list[tuple[float, float]] = []
    for number, (step, _) in enumerate(points):
        near = points[max(0, number - half) : number + half + 1]
        found.append((step, sum(value for _, value in near) / len(near)))
    return found
