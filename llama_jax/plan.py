"""Compile a run for hardware that is not here: `python -m llama_jax.plan`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("plan")

import functools
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

from llama_jax.config import COMMANDS
from llama_jax.pipeline.config import RlhfConfig
from llama_jax.pipeline.handing_down import for_dry_run, stages_of
from llama_jax.pipeline.planned import plan_iteration
from llama_jax.pipeline.ppo_programs import ppo_calls
from llama_jax.planning.config import HardwareConfig, PlannedConfig, PlannedPipelineConfig
from llama_jax.planning.hardware import parse_topology
from llama_jax.planning.planner import Planner
from llama_jax.planning.topology import absent_devices
from llama_jax.runs.config import RunConfig


def plan(config: HardwareConfig) -> None:
    """Print what compiling the run says, and with `json` all of it as one object; writes no file."""
    say = functools.partial(print, file=sys.stderr if config.json else sys.stdout, flush=True)
    if isinstance(config, PlannedPipelineConfig):
        report = _pipeline(config, say)
    else:
        report = _planner(cast(PlannedConfig, config), say).report()
    if config.json:
        print(json.dumps(report))


def planned_command(config: HardwareConfig) -> str:
    """Name of the command whose settings these are beside those of `plan`, as the list of commands has it."""
    name = next(name for name, settings in COMMANDS.items() if settings is type(config))
    return name.partition(" ")[2] or "pretrain"


def _planner(config: PlannedConfig, say: Callable[[str], None]) -> Planner:
    topology, command = parse_topology(config.topology, config.num_slices), planned_command(config)
    build = importlib.import_module(f"llama_jax.{command}").build
    return Planner(config, command, build, topology, absent_devices(topology), say)


def _pipeline(config: PlannedPipelineConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """The stages of `rlhf` that would be made, each from the base."""
    settings = cast(RlhfConfig, config)
    told = for_dry_run(settings, stages_of(settings))

    def planner(command: str, stage: RunConfig) -> Planner:
        own = {field.name: getattr(stage, field.name) for field in fields(stage)}
        planned = COMMANDS[f"plan {command}"](**own, topology=config.topology, num_slices=config.num_slices)
        return _planner(planned, say)

    elsewhere = {"sft": settings.sft_model, "reward": settings.reward_model}
    made = [name for name, model in elsewhere.items() if model is None]
    stages = {name: planner(name, getattr(told, name)).report() for name in made}
    ppo = planner("ppo", told.ppo)
    with_adapters = settings.reward_model is None and told.reward.method == told.ppo.method == "lora"
    of_reward = told.reward.lora if with_adapters and settings.reward.model in ("sft", None) else None
    calls = ppo_calls(told.ppo, ppo.build(told.ppo, ppo.devices), of_reward, ppo.devices)
    stages["ppo"] = plan_iteration(told.ppo, calls, ppo.chip, config.measured, say)
    return {"what": "rlhf", "fits": all(each["fits"] for each in stages.values()), "stages": stages, **ppo.facts()}
