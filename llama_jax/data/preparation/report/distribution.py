"""Distributions over the fixed bins of a tally, and their picture as SVG."""

import html
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from llama_jax.core.recording.pages import few_digits
from llama_jax.data.preparation.report.tally import MEASURE_BOUNDS

_WIDTH, _HEIGHT, _SIDE, _TOP, _BOTTOM = 340, 150, 12, 18, 22
_LABEL = 28  # of the width, between two labels
_TICKS = 6


def quantile(bins: Mapping[str, int], share: float) -> float:
    """The lower bound of the bin that holds the value below which a share of all is."""
    left = share * sum(bins.values())
    for lower in sorted(bins, key=float):
        left -= bins[lower]
        if left <= 0:
            return float(lower)
    return 0.0


def distribution_svg(name: str, bins: Mapping[str, int], bounds: Sequence[float]) -> str:
    """The counts as columns over an axis that is about logarithmic, with the bounds that rules set as dashed lines.

    What was too small for the axis (and 0) is a column to the left of it; there is something besides.
    """
    places = {math.floor(_place(float(lower))): count for lower, count in bins.items() if lower != "0"}
    drawn = [*places, *(math.floor(_place(bound)) for bound in bounds if bound > 0)]
    first, last = min(drawn) - 1 - 3 * ("0" in bins), max(drawn) + 2
    most = max(bins.values())
    across, up = (_WIDTH - 2 * _SIDE) / (last - first), _HEIGHT - _TOP - _BOTTOM

    def x(place: float | int) -> float:
        return _SIDE + (place - first) * across

    parts = [f'<line class="grid" x1="0" x2="{_WIDTH}" y1="{_HEIGHT - _BOTTOM}" y2="{_HEIGHT - _BOTTOM}"/>']
    columns = {**places, **({first: bins["0"]} if "0" in bins else {})}
    for place, count in sorted(columns.items()):
        tall = max(1.0, up * count / most)
        size = f'x="{x(place):.1f}" y="{_HEIGHT - _BOTTOM - tall:.1f}" width="{max(0.8, across - 0.6):.1f}"'
        parts.append(f'<rect class="column" {size} height="{tall:.1f}"/>')
    labels = [(x(first + 0.5), "0")] if "0" in bins else []
    for value in _ticks(first, last):
        at = x(_place(value))
        if not labels or at > labels[-1][0] + _LABEL:
            labels.append((at, f"{value:,g}" if value < 1e6 else f"{value:g}"))
    parts += [f'<text x="{at:.1f}" y="{_HEIGHT - 7}" text-anchor="middle">{label}</text>' for at, label in labels]
    for bound in bounds:
        at = x(_place(bound) if bound > 0 else first + 1)
        parts.append(f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 4}" y2="{_HEIGHT - _BOTTOM}"/>')
        anchor = "end" if at > _WIDTH / 2 else "start"  # within the picture
        parts.append(f'<text class="bounded" x="{at:.1f}" y="10" text-anchor="{anchor}">{bound:,g}</text>')
    label = html.escape(f"Distribution of {name}, median about {few_digits(quantile(bins, 0.5))}", quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _place(value: float) -> float:
    """The number of the bin that holds a value, and how far into it the value is."""
    number = min(max(0, bisect_right(MEASURE_BOUNDS, value) - 1), len(MEASURE_BOUNDS) - 2)
    lower, upper = MEASURE_BOUNDS[number : number + 2]
    return number + math.log(max(value, lower) / lower, upper / lower)


def _ticks(first: int, last: int) -> list[float]:
    """Round numbers on the axis, six at the most."""
    found: list[float] = []
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1,)):
        every = (float(f"{digit}e{power}") for power in range(-4, 10) for digit in digits)
        found = [value for value in every if first <= _place(value) <= last]
        if len(found) <= _TICKS:
            return found
    return found[:: -(-len(found) // _TICKS)]
