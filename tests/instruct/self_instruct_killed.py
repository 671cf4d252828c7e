"""The command with the arguments given, in a process that a test kills: `python self_instruct_killed.py ARGUMENTS`."""

import sys

from llama_jax.config import COMMANDS
from llama_jax.core.settings.command_line import run_command
from llama_jax.self_instruct import self_instruct

sys.exit(run_command(self_instruct, COMMANDS["self_instruct"], command="self_instruct", commands=COMMANDS))
