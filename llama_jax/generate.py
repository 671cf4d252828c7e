"""Continue a prompt: `python -m llama_jax.generate`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("generate")

import json
import sys

import jax

from llama_jax.checkpoints.opening import open_named
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import is_main_process, main_process_printer, start_up
from llama_jax.inference.config import GenerateConfig
from llama_jax.inference.generate_command import continue_prompts, read_prompts


def generate(config: GenerateConfig) -> None:
    """Print what the model writes after each prompt, and as JSON with the number of tokens and the model's name."""
    say = main_process_printer(sys.stderr)
    who = start_up(config.distributed)
    prompts = read_prompts(config)
    with jax.set_mesh(make_mesh(config.mesh)):
        opened = open_named(config, say)
        result, seconds = continue_prompts(config, opened, prompts)
    say(f"{who}; {opened.source}: {result['tokens']} tokens in {seconds:.1f} s, compilation included")
    if config.json and is_main_process():
        print(json.dumps(result))
