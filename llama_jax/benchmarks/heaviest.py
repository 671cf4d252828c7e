"""What the steps of a program spend their time on: a trace of JAX's profiler, read into the heaviest operations."""

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

_OF_DEVICES = re.compile(r"Stream #|XLA Ops$")
"""Lines of a device in a trace that hold what it did: the streams of a GPU, the operations of a TPU."""
_SURROUNDINGS = ("while", "body", "eval_jaxpr", "closed_call", "checkpoint", "rematted_computation")
"""Parts of the name of an operation that only say what it lies in."""


class Event(NamedTuple):
    """Something a device did, in nanoseconds."""

    name: str
    start: float
    duration: float


def profiled(run: Callable[[], None], steps: int, hlo: str, count: int = 10) -> dict[str, Any]:
    """The heaviest operations of what `run` does.

    Args:
        run: makes so many steps; all their results are there on return.
        hlo: text of the compiled program, which says what its operations were made for.
        count: how many operations are told.

    Returns:
        `busy_seconds` a step, of all operations on all devices together, and `operations`, heaviest first: `name`,
        `source` (the operation of the model it was made for), `seconds` and `calls` a step, and `share` of
        `busy_seconds`. Time in which one operation waits for those within it is theirs.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            run()
        finally:
            jax.profiler.stop_trace()
        return heaviest(Path(folder), steps, hlo, count)


def heaviest(folder: Path, steps: int, hlo: str, count: int) -> dict[str, Any]:
    """See `profiled`; of a trace that lies below the folder."""
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for file in folder.rglob("*.xplane.pb"):
        for line in _lines(jax.profiler.ProfileData.from_file(str(file))):
            for event, nanoseconds in own_times(line):
                spent[event.name] = spent.get(event.name, 0.0) + nanoseconds
                calls[event.name] = calls.get(event.name, 0) + 1
    busy, sources = sum(spent.values()), sources_of(hlo)
    first = sorted(spent, key=lambda name: -spent[name])[:count]
    return {
        "steps": steps,
        "busy_seconds": busy / steps / 1e9,
        "operations": [
            {
                "name": name,
                "source": sources.get(name, ""),
                "seconds": spent[name] / steps / 1e9,
                "share": spent[name] / busy,
                "calls": calls[name] / steps,
            }
            for name in first
        ],
    }


def _lines(data: Any) -> Iterator[list[Event]]:
    """What each stream of a device did, or each thread that computes for a CPU, by a `jax.profiler.ProfileData`."""
    with warnings.catch_warnings():
        # Of Python 3.13, about the types of JAX's own that this reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        for plane in data.planes:
            is_device = plane.name.startswith("/device:")
            for line in plane.lines:
                if is_device and not _OF_DEVICES.match(line.name):
                    continue
                events = [
                    Event(str(operation or event.name), event.start_ns, event.duration_ns)
                    for event in line.events
                    if (operation := dict(event.stats).get("hlo_op")) or is_device
                ]
                if events:
                    yield events


def own_times(events: list[Event]) -> Iterator[tuple[Event, float]]:
    """Each event of one line with the time in which no event within it runs: a loop has what its turns leave."""
    inside: list[tuple[Event, list[float]]] = []
    for event in sorted(events, key=lambda each: (each.start, -each.duration)):
        while inside and event.start >= inside[-1][0].start + inside[-1][0].duration:
            outer, parts = inside.pop()
            yield outer, max(outer.duration - sum(parts), 0.0)
        if inside:
            inside[-1][1].append(event.duration)
        inside.append((event, []))
    for outer, parts in inside:
        yield outer, max(outer.duration - sum(parts), 0.0)


def sources_of(hlo: str) -> dict[str, str]:
    """For each instruction of a program the operation that it was made for: `transpose(jvp(Llama))/layers/mlp/up_proj/
    dot_general`."""
    found = re.findall(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', hlo, re.MULTILINE)
    return {name: "/".join(part for part in path.split("/") if part not in _SURROUNDINGS) for name, path in found}
