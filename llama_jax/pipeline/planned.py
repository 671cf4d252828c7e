"""All that a pipeline runs, compiled for hardware that is not here: the steps of its stages, and an iteration of PPO by
the phases that its metrics are of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llama_jax.core.chips import GIB, Chip
from llama_jax.core.errors import UserError
from llama_jax.core.recording.metrics import MetricsRecord, read_metrics
from llama_jax.core.run_directory import RunDirectory
from llama_jax.core.text import aligned
from llama_jax.pipeline.outcome import PHASES
from llama_jax.pipeline.ppo_programs import Call, longest_prompt
from llama_jax.planning.report import compiled_report
from llama_jax.planning.roofline import LABEL
from llama_jax.rl.ppo_config import PpoConfig

_COMPILING = 2
"""Iterations at the beginning of a run in which programs are compiled: their times say nothing of the others'."""


def plan_iteration(
    config: PpoConfig, calls: Sequence[Call], chip: Chip, measured: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Compile the programs of an iteration, and add up how long it takes at least.

    Args:
        measured: A run whose times are shown beside; None: none.

    Raises:
        UserError: that run has recorded nothing.
    """
    beside = None if measured is None else measured_iteration(measured)
    programs = []
    for call in calls:
        found = compiled_report(call.lowered, chip)
        programs.append({"phase": call.phase, "program": call.name, "runs": call.runs, **found})
        say(_line(programs[-1]))
    iteration = predicted_iteration(config, programs)
    report: dict[str, Any] = {"fits": all(each["fits"] for each in programs), "programs": programs}
    report |= {"iteration": iteration} | ({} if beside is None else {"measured": beside})
    say("\n".join(_iteration_lines(iteration, beside)))
    return report


def predicted_iteration(config: PpoConfig, programs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Seconds and tokens by second of each phase, as a run records them, were prompts and completions as long as they
    may be; None where a program of the phase does not fit."""
    completions, longest = config.rollout.completions, config.rollout.max_new_tokens
    read = completions * (longest_prompt(config) + longest)
    # Policy and critic read all completions in each epoch.
    tokens = {"generation": completions * longest, "scoring": read, "update": 2 * config.rollout_epochs * read}
    seconds = {phase: _seconds([each for each in programs if each["phase"] == phase]) for phase in PHASES}
    whole = None if None in seconds.values() else sum(filter(None, seconds.values()))
    found: dict[str, float | None] = {
        "step_seconds": whole,
        "tokens_per_second": whole and tokens["generation"] / whole,
    }
    for phase, spent in seconds.items():
        found[f"{phase}_seconds"] = spent
        if phase in tokens:
            found[f"{phase}_tokens_per_second"] = spent and tokens[phase] / spent
    return found


def measured_iteration(path: str) -> dict[str, float]:
    """The medians of a run of PPO by the same names, without its first iterations.

    Raises:
        UserError: there is no such run, or it has made too few iterations.
    """
    metrics = RunDirectory(path).metrics
    records = read_metrics(metrics)[_COMPILING:] if metrics.exists() else []
    if not records or not isinstance(records[0].get("generation_seconds"), float):
        raise UserError(f"--measured {path}: has no metrics.jsonl of ppo with more than {_COMPILING} iterations")
    names = [name for name in records[0] if name.endswith(("_seconds", "tokens_per_second"))]
    return {name: _median(records, name) for name in names if name.removesuffix("_seconds") != "data_wait"}


def _median(records: Sequence[MetricsRecord], name: str) -> float:
    values = [float(value) for each in records if isinstance(value := each.get(name), int | float)]
    return float(np.median(values))


def _seconds(programs: Sequence[Mapping[str, Any]]) -> float | None:
    if not all(each["fits"] for each in programs if each["runs"]):
        return None
    return sum(each["runs"] * each["roofline"]["as_scheduled"] for each in programs if each["runs"])


def _line(program: Mapping[str, Any]) -> str:
    memory, what = program["memory"], f"ppo {program['phase']}: {program['program']}"
    beside = f" ({memory['beside'] / GIB:.2f} of them beside it)" if memory.get("beside") else ""
    compiled = f"compiled in {program['compile_seconds']} s"
    if not program["fits"]:
        return (
            f"{what}: does NOT fit, {memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB{beside}, {compiled}"
        )
    taken, bound = memory["limit"] - memory["headroom"], program["roofline"]
    times = f" x {program['runs']}" if program["runs"] != 1 else ""
    return (
        f"{what}: fits, {taken / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB{beside}, "
        f"{bound['as_scheduled']:.3g} s{times}, bound by {bound['bound']}, {compiled}"
    )


def _iteration_lines(iteration: Mapping[str, float | None], measured: Mapping[str, float] | None) -> list[str]:
    header = ("an iteration of ppo", "planned", *(["measured"] if measured is not None else []))
    rows = [
        (name, _shown(value), *([_shown(measured.get(name))] if measured is not None else []))
        for name, value in iteration.items()
    ]
    return [*aligned([header, *rows], words=1), f"planned: {LABEL}; prompts and completions of the greatest length"]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
