"""The picture of a run: loss (or reward, where there is one), learning rate, gradient norm and speed over the steps."""

import io
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from llama_jax.core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE, _MEDIAN, _POINT = "#9db8d9", "#1f4e8c", "#d1495b"


def draw_curves(records: Iterable[Mapping[str, Any]], path: epath.PathLike) -> None:
    """Draw the records of a run (see `metrics.read_metrics`) as a PNG of four panels.

    Each panel shows every step thin and a centred running median thick; missing and non-finite values are left out.
    Nothing is drawn when there is no record.
    """
    rows = sorted(records, key=lambda record: record["step"] or 0)
    if not rows:
        return
    # Figures made without pyplot have no global state and need no display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 7.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    steps = _column(rows, "step")
    # Where rewards are learned from, the loss lies around 0 and says nothing.
    rewarded = any(row.get("reward") is not None for row in rows)
    main = ("reward", "Reward", "mean of an iteration") if rewarded else ("loss", "Loss", "nats per token")
    held_out, label = ("held_out_reward", "held out, greedy") if rewarded else ("validation_loss", "validation")
    _draw(axes[0, 0], steps, _column(rows, main[0]), *main[1:])
    if np.isfinite(measured := _column(rows, held_out)).any():
        axes[0, 0].plot(steps, measured, "o", color=_POINT, markersize=5, zorder=3, label=label)
        axes[0, 0].legend(frameon=False, fontsize=9)
    _draw(axes[0, 1], steps, _column(rows, "learning_rate"), "Learning rate", "", smooth=False)
    axes[0, 1].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _draw(axes[1, 0], steps, norms := _column(rows, "grad_norm"), "Gradient norm", "")
    finite = norms[np.isfinite(norms)]
    if finite.size and finite.min() > 0 and finite.max() > 20 * np.median(finite):
        axes[1, 0].set_yscale("log")  # a few spikes would flatten everything else
    _draw(axes[1, 1], steps, _column(rows, "tokens_per_second"), "Speed, all devices", "tokens per second")
    axes[1, 1].set_ylim(bottom=0)
    axes[1, 1].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axis in axes[1]:
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.suptitle(_title(epath.Path(path).parent.name, rows), fontsize=12)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_whole(epath.Path(path), picture.getvalue())


def _column(rows: list[Mapping[str, Any]], name: str) -> np.ndarray:
    """The finite values of a field as float64, NaN elsewhere."""
    values = np.array([math.nan if row.get(name) is None else float(row[name]) for row in rows])
    return np.where(np.isfinite(values), values, math.nan)


def _running_median(steps: np.ndarray, values: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """At up to 500 steps: the median of the finite values within `half` rows on either side, fewer near the ends.

    A mean would show each spike as a plateau as wide as the window.
    """
    centres = np.unique(np.linspace(0, len(values) - 1, 500).astype(int))
    medians = []
    for centre in centres:
        reach = min(half, centre)  # symmetric at the start, where values fall steeply
        window = values[centre - reach : centre + reach + 1]
        window = window[np.isfinite(window)]
        medians.append(np.median(window) if window.size else math.nan)
    return steps[centres], np.array(medians)


def _draw(axis: "Axes", steps: np.ndarray, values: np.ndarray, title: str, unit: str, smooth: bool = True) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_ylabel(unit)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if not np.isfinite(values).any():
        axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", color="gray")
        return
    half = len(values) // 50 if smooth else 0
    if half == 0:
        marker = "." if len(values) <= 60 else None
        axis.plot(steps, values, color=_MEDIAN, linewidth=1.6, marker=marker, label="training")
        return
    axis.plot(steps, values, color=_LINE, linewidth=0.7, label="each step")
    axis.plot(*_running_median(steps, values, half), color=_MEDIAN, linewidth=1.8, label=f"median of {2 * half + 1}")
    axis.legend(frameon=False, fontsize=9)


def _title(name: str, rows: list[Mapping[str, Any]]) -> str:
    last = rows[-1]
    parts = [name, f"{last['step']:,} steps"]
    if last.get("tokens") is not None:
        parts.append(f"{last['tokens']:,.0f} tokens")
    main = "reward" if last.get("reward") is not None else "loss"
    if (value := last.get(main)) is not None:
        parts.append(f"last {main} {value:.3f}")
    validation = [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]
    if validation:
        parts.append(f"last validation loss {validation[-1]:.3f}")
    return "   ·   ".join(filter(None, parts))
