"""The numbers of a run as a figure: verbs and nouns in two rings, as both papers draw them, the funnel, lengths, and
similarities."""

import io
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _GRAY = "#1f4e8c", "#d1495b", "#8a8f98"
_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei")
_FONTS += ("WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei", "Droid Sans Fallback", "Arial Unicode MS")
"""Fonts with Chinese characters, which the one that comes with matplotlib lacks."""
_REPLACED = "□"


def draw_report(found: Mapping[str, Any], format: str, *, seeds: bool = False) -> bytes:
    """The figure of a report, as `png` or as `svg`, whose text stays text.

    Args:
        seeds: The rings of the seed tasks alone.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import findfont, fontManager, get_font

    installed = {font.name for font in fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
    glyphs = [get_font(findfont(name)).get_charmap() for name in family]

    def shown(text: str) -> str:
        known = all(any(ord(character) in each for each in glyphs) for character in text)
        return text if known or format == "svg" else _REPLACED  # a browser has fonts for everything

    draw = _seed_figure if seeds else _figure
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": family}
    picture = io.BytesIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of what the browser is to find
        draw(found, shown).savefig(picture, format=format, metadata={"Date": None} if format == "svg" else None)
    return picture.getvalue()


def _figure(found: Mapping[str, Any], shown: Any) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 0.85, 0.85))
    _rings(figure.add_subplot(grid[:, :2]), found["verbs"], shown)
    _funnel(figure.add_subplot(grid[0, 2]), found["funnel"])
    _lengths(figure.add_subplot(grid[0, 3]), found["lengths"])
    _similarity(figure.add_subplot(grid[1, 2]), found["similarity"]["to_pool"])
    _drift(figure.add_subplot(grid[1, 3]), found["similarity"]["to_seeds_by_round"])
    return figure


def _seed_figure(found: Mapping[str, Any], shown: Any) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.5), dpi=110, layout="constrained")
    _rings(figure.add_subplot(), found["verbs_of_seeds"], shown)
    return figure


def _rings(axis: "Axes", verbs: Mapping[str, Any], shown: Any) -> None:
    """Verbs inside, each with its most frequent nouns outside; what is left of a verb is pale."""
    pairs, all_ = verbs["with_verb_and_noun"], verbs["instructions"]
    axis.set_title(f"Verbs and nouns: {verbs['different_pairs']} pairs in {pairs} of {all_} instructions", loc="left")
    axis.set_axis_off()
    axis.set_aspect("equal")
    if not verbs["top"]:
        axis.text(0.5, 0.5, "no instruction with a verb and a noun", ha="center", color=_GRAY, transform=axis.transAxes)
        return
    from matplotlib import colormaps

    if shown(_REPLACED.join(verbs["top"])) == _REPLACED:
        note = f"{_REPLACED}: no font here has the characters; report.html shows them"
        axis.text(0, 0, note, color=_GRAY, transform=axis.transAxes)
    colors = [colormaps["tab20"](number % 20) for number in range(len(verbs["top"]))]
    counts = [verb["count"] for verb in verbs["top"].values()]
    inner, _ = axis.pie(counts, radius=0.62, colors=colors, startangle=90, wedgeprops={"edgecolor": "white"})
    outer_counts, outer_colors, names = [], [], []
    for color, verb in zip(colors, verbs["top"].values(), strict=True):
        rest = verb["count"] - sum(verb["nouns"].values())
        outer_counts += [*verb["nouns"].values(), rest]
        outer_colors += [(*color[:3], 0.55)] * len(verb["nouns"]) + [(*color[:3], 0.15)]
        names += [*verb["nouns"], ""]
    wedge = {"width": 0.36, "edgecolor": "white"}
    outer, _ = axis.pie(outer_counts, radius=1.0, colors=outer_colors, startangle=90, wedgeprops=wedge)
    for wedges, labels, radius in ((inner, list(verbs["top"]), 0.42), (outer, names, 0.83)):
        for part, label in zip(wedges, labels, strict=True):
            if part.theta2 - part.theta1 > 2.2:
                _label(axis, shown(label), math.radians((part.theta1 + part.theta2) / 2), radius)


def _label(axis: "Axes", text: str, angle: float, radius: float) -> None:
    degrees = math.degrees(angle) % 360
    turned = degrees + 180 if 90 < degrees < 270 else degrees
    place = radius * math.cos(angle), radius * math.sin(angle)
    axis.text(*place, text, rotation=turned, ha="center", va="center", fontsize=8.5, rotation_mode="anchor")


def _funnel(axis: "Axes", funnel: Mapping[str, Any]) -> None:
    axis.set_title(f"{funnel['proposed']:,} proposed in {funnel['requests']:,} requests", loc="left", fontsize=11)
    rows = {"kept": funnel["kept"], **funnel["dropped"]}
    names = [name.replace("_", " ") for name in rows]
    axis.barh(names, list(rows.values()), height=0.6, color=[_BLUE] + [_RED] * (len(rows) - 1))
    for place, count in enumerate(rows.values()):
        axis.text(count, place, f" {count:,}", va="center", fontsize=8.5)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    _plain(axis)


def _lengths(axis: "Axes", lengths: Mapping[str, list[int]]) -> None:
    axis.set_title("Words", loc="left", fontsize=11)
    longest = max((max(values) for values in lengths.values() if values), default=0)
    bins = np.unique(np.geomspace(1, max(longest, 2) + 1, 24).astype(int))
    for (name, values), color in zip(lengths.items(), (_BLUE, _GRAY, _RED), strict=True):
        if values:
            median = f"{name} (median {np.median(values):.0f})"
            axis.hist(
                np.maximum(values, 1), bins=bins.tolist(), histtype="step", linewidth=1.6, color=color, label=median
            )
    if longest:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(frameon=False, fontsize=8.5, loc="upper left")
        axis.margins(y=0.3)
    _plain(axis)


def _similarity(axis: "Axes", values: list[float]) -> None:
    axis.set_title("ROUGE-L with the most similar before", loc="left", fontsize=11)
    axis.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=_BLUE)
    axis.set_xlim(0, 1)
    axis.set_xlabel("kept instructions")
    _plain(axis)


def _drift(axis: "Axes", by_round: Mapping[str, float]) -> None:
    axis.set_title("ROUGE-L with the nearest seed", loc="left", fontsize=11)
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    rounds = [int(number) for number in by_round]
    axis.plot(rounds, list(by_round.values()), color=_BLUE, marker="." if len(rounds) < 60 else None)
    axis.set_ylim(0, 1)
    axis.set_xlabel("round")
    _plain(axis)


def _plain(axis: "Axes") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)
