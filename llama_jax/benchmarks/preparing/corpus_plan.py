"""What the corpus of LLaMA takes on many machines, by the rates of one core: `benchmark prepare --machines N`."""

from collections.abc import Mapping
from typing import Any

from llama_jax.benchmarks.preparing.config import PrepareBenchmarkConfig
from llama_jax.benchmarks.results import say

SOURCES: Mapping[str, float] = {
    "CommonCrawl": 3300,
    "C4": 783,
    "GitHub": 328,
    "Wikipedia": 83,
    "Books": 85,
    "ArXiv": 92,
    "StackExchange": 78,
}
"""Gigabytes on disk (arXiv:2302.13971, table 1)."""


def planned(config: PrepareBenchmarkConfig, measured: Mapping[str, Any], machines: int) -> dict[str, Any]:
    """Machine-hours, hours and bytes of every step for the whole corpus.

    All of the text goes through every step; documents, and how many are near-duplicates, are as measured; every core is
    as fast as the one that was measured, and storage keeps up. A step that one process does takes as long on many
    machines as on one.

    Args:
        measured: What `measure_steps` gives.
    """
    total = sum(SOURCES.values()) * 1e9
    times = total / measured["text_bytes"]
    steps = []
    for step in measured["steps"]:
        core_hours = step["seconds"] * times / 3600
        hours = core_hours if step["is_serial"] else core_hours / (machines * config.cores)
        steps.append(
            {
                "name": step["name"],
                "machine_hours": hours if step["is_serial"] else hours * machines,
                "hours": hours,
                "read_bytes": step["read"] * times,
                "written_bytes": step["written"] * times,
                "is_serial": step["is_serial"],
            }
        )
    names = ("machine_hours", "hours", "read_bytes", "written_bytes")
    steps.append({"name": "all", "is_serial": False} | {name: sum(step[name] for step in steps) for name in names})
    gigabytes = ", ".join(f"{name} {size:,.0f}" for name, size in SOURCES.items())
    say(config, f"\n{total / 1e12:.2f} TB ({gigabytes} GB) on {machines} machines of {config.cores} cores:")
    say(config, "| step | machine-hours | hours | read, TB | written, TB |\n|---|---|---|---|---|")
    for step in steps:
        name = f"{step['name']} (one process)" if step["is_serial"] else step["name"]
        read, written = (step[name] / 1e12 for name in ("read_bytes", "written_bytes"))
        say(config, f"| {name} | {step['machine_hours']:,.1f} | {step['hours']:,.2f} | {read:,.2f} | {written:,.2f} |")
    return {"machines": machines, "cores": config.cores, "text_bytes": total, "steps": steps}
