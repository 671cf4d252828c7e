"""`benchmark scaling`: whether cost grows as the FLOP formula says; speed against context, width and batch, as a table
and a picture."""

import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
from etils import epath

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.results import say
from llama_jax.benchmarks.step import MeasuredStep
from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.core.processes.distributed import is_main_process
from llama_jax.training.program import Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["context", "width", "batch"]

_MEASURED, _FORMULA = "#1f4e8c", "#d1495b"
_LABELS: dict[Axis, tuple[str, str]] = {
    "context": ("Context", "tokens in a row, with as many tokens a step"),
    "width": ("Width", "size of the residual stream"),
    "batch": ("Batch", "rows a step"),
}


Build = Callable[[BenchmarkConfig], Program]
"""Makes the training step of a config."""


class Size(NamedTuple):
    """What differs from program to program."""

    context: int
    width: int
    batch: int


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


def measure_scaling(config: BenchmarkConfig, build: Build) -> dict[str, Any]:
    """Sweeps along each axis from the first context, width and batch size; draws `scaling.png`."""
    base = Size(config.contexts[0], config.widths[0], config.batch_sizes[0])
    wanted: dict[Axis, list[Size]] = {
        "context": [
            base._replace(context=context, batch=max(1, base.batch * base.context // context))
            for context in sorted(config.contexts)
        ],
        "width": [base._replace(width=width) for width in sorted(config.widths)],
        "batch": [base._replace(batch=batch) for batch in sorted(config.batch_sizes)],
    }
    points = _points(config, build, sorted({size for sizes in wanted.values() for size in sizes}))
    sweeps: Sweeps = {axis: [points[size] for size in sizes] for axis, sizes in wanted.items()}
    say(config, table(sweeps, points[base]))
    if is_main_process():
        model, device = config.run.model, jax.devices()[0].device_kind
        title = f"{model.num_layers} layers, {config.run.compute.dtype}, {jax.device_count()} x {device}"
        epath.Path(config.output).mkdir(parents=True, exist_ok=True)
        draw(sweeps, points[base], title, epath.Path(config.output) / "scaling.png")
    return {
        "base": dataclasses.asdict(points[base]),
        "sweeps": {axis: [dataclasses.asdict(point) for point in along] for axis, along in sweeps.items()},
    }


def _points(config: BenchmarkConfig, build: Build, sizes: Sequence[Size]) -> dict[Size, Point]:
    measured: dict[Size, tuple[MeasuredStep, list[float]]] = {}
    for size in sizes:
        program = build(_sized(config, size))
        with jax.set_mesh(program.mesh):
            step = MeasuredStep(program)
            step.turn(config.warmup_steps)
        measured[size] = step, []
        say(config, f"compiled: context {size.context:,}, width {size.width:,}, batch {size.batch:,}")
    # In turns, so that a change of the machine's speed on the way hits all of them.
    for _ in range(config.turns):
        for step, seconds in measured.values():
            with jax.set_mesh(step.program.mesh):
                seconds.append(turns.timed(step.turn, config.steps_per_turn))
    points = {}
    for size, (step, seconds) in measured.items():
        tokens = size.context * size.batch
        points[size] = Point(
            *size,
            tokens_per_second=tokens / statistics.median(seconds),
            slowest=tokens / max(seconds),
            fastest=tokens / min(seconds),
            flops_per_token=step.program.flops_per_token,
        )
    return points


def _sized(config: BenchmarkConfig, size: Size) -> BenchmarkConfig:
    """The config at another size.

    Raises:
        UserError: the width is not a multiple of `model.head_size`.
    """
    run, model = config.run, config.run.model
    if size.width % model.head_size:
        raise UserError(f"--widths: {size.width} is not divisible by model.head_size {model.head_size}")
    heads = size.width // model.head_size
    sized = dataclasses.replace(
        model,
        width=size.width,
        mlp_width=-(-model.mlp_width * size.width // model.width // 8) * 8,
        num_heads=heads,
        num_kv_heads=max(1, heads // (model.num_heads // model.num_kv_heads)),
        context_length=size.context,
    )
    changes: dict[str, Any] = {
        "model": sized,
        "data": dataclasses.replace(run.data, sequence_length=size.context),
        "training": dataclasses.replace(run.training, batch_size=size.batch, batch_ramp=(), microbatches=1),
    }
    return dataclasses.replace(config, **changes)
