"""Compile a run for hardware that is not here: `python -m llama_jax.plan`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("plan")

import functools
import importlib
import json
import sys

from llama_jax.config import COMMANDS
from llama_jax.planning.config import PlannedConfig
from llama_jax.planning.hardware import parse_topology
from llama_jax.planning.planner import Planner
from llama_jax.planning.topology import absent_devices


def plan(config: PlannedConfig) -> None:
    """Print what compiling the run says, and with `json` all of it as one object; writes no file."""
    topology = parse_topology(config.topology, config.num_slices)
    devices = absent_devices(topology)
    command = planned_command(config)
    build = importlib.import_module(f"llama_jax.{command}").build
    say = functools.partial(print, file=sys.stderr if config.json else sys.stdout, flush=True)
    report = Planner(config, command, build, topology, devices, say).report()
    if config.json:
        print(json.dumps(report))


def planned_command(config: PlannedConfig) -> str:
    """Name of the command whose settings these are beside those of `plan`, as the list of commands has it."""
    name = next(name for name, settings in COMMANDS.items() if settings is type(config))
    return name.partition(" ")[2] or "pretrain"
