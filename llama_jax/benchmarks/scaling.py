"""Whether cost grows as the FLOP formula says: speed against context, width and batch, as a table and a picture."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from etils import epath

from llama_jax.core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["context", "width", "batch"]

_MEASURED, _FORMULA = "#1f4e8c", "#d1495b"
_LABELS: dict[Axis, tuple[str, str]] = {
    "context": ("Context", "tokens in a row, with as many tokens a step"),
    "width": ("Width", "size of the residual stream"),
    "batch": ("Batch", "rows a step"),
}


@dataclass(frozen=True)
class Point:
    """One program that was measured."""

    context: int
    width: int
    batch: int
    tokens_per_second: float
    """Median of the turns."""
    slowest: float
    """Tokens per second of the slowest turn."""
    fastest: float
    """Tokens per second of the fastest turn."""
    flops_per_token: int
    """By the formula of `model/flops.py`."""

    @property
    def flops_per_second(self) -> float:
        """Model FLOPs per second: the same at all points if cost grew exactly as the formula says."""
        return self.tokens_per_second * self.flops_per_token


Sweeps = dict[Axis, list[Point]]
"""For each axis, points that differ along it, ascending; the base point is among those of each."""


def table(sweeps: Sweeps, base: Point) -> str:
    """The points as text; `of formula` is the speed relative to what the base point and the formula predict."""
    lines = [
        f"{'':<9}{'context':>9}{'width':>7}{'batch':>7}{'tokens/s':>11}{'GFLOP/s':>9}{'of formula':>12}{'turns':>18}"
    ]
    for axis, points in sweeps.items():
        for point in points:
            turns = f"{point.slowest:,.0f}–{point.fastest:,.0f}"
            share = point.flops_per_second / base.flops_per_second
            lines.append(
                f"{axis:<9}{point.context:>9,}{point.width:>7,}{point.batch:>7,}{point.tokens_per_second:>11,.0f}"
                f"{point.flops_per_second / 1e9:>9.1f}{share:>12.0%}{turns:>18}"
            )
    return "\n".join(lines)


def draw(sweeps: Sweeps, base: Point, title: str, path: epath.PathLike) -> None:
    """A panel for each axis: measured speed with the range of its turns, and the formula through the base point."""
    # Figures made without pyplot have no global state and need no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for panel, (axis, points) in zip(axes, sweeps.items(), strict=True):
        _panel(panel, axis, points, base)
    axes[0].set_ylabel("tokens per second")
    figure.suptitle(title, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(epath.Path(path), picture.getvalue())


def _panel(panel: "Axes", axis: Axis, points: Sequence[Point], base: Point) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    places = [getattr(point, axis) for point in points]
    speeds = [point.tokens_per_second for point in points]
    ranges = [
        [point.tokens_per_second - point.slowest for point in points],
        [point.fastest - point.tokens_per_second for point in points],
    ]
    formula = [base.flops_per_second / point.flops_per_token for point in points]
    bars: Any = panel.errorbar(places, speeds, yerr=ranges, fmt="o-", color=_MEASURED, capsize=3, label="measured")
    bars.lines[0].set_zorder(3)
    panel.plot(places, formula, "--", color=_FORMULA, label="FLOP formula")
    panel.plot([getattr(base, axis)], [base.tokens_per_second], "o", mfc="none", mec=_FORMULA, ms=11)
    name, unit = _LABELS[axis]
    panel.set_title(name, loc="left", fontsize=11)
    panel.set_xlabel(unit)
    panel.set_xscale("log", base=2)
    panel.set_xticks(places)
    panel.xaxis.set_minor_locator(NullLocator())
    for direction in (panel.xaxis, panel.yaxis):
        direction.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.set_ylim(0, 1.15 * max(*formula, *(point.fastest for point in points)))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=9)
