"""Continue a prompt: `python -m llama_jax.generate`."""

import json
import sys
import time
from collections.abc import Callable

import jax
from etils import epath

from llama_jax.checkpoints.opening import find_model, open_model
from llama_jax.config import COMMANDS, GenerateConfig
from llama_jax.core import sharding
from llama_jax.core.command_line import run_command
from llama_jax.core.distributed import is_main_process, start_up
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.decode import decoding_params
from llama_jax.inference.decode import generate as decode
from llama_jax.model.config import ComputeConfig


def generate(config: GenerateConfig) -> None:
    """Run the command."""

    def say(text: str) -> None:
        if is_main_process():
            print(text, file=sys.stderr, flush=True)

    who = start_up(config.distributed)
    prompts = _prompts(config)
    sampling = SamplingConfig(config.max_new_tokens, config.temperature, config.top_k, config.top_p)
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        path = find_model(config.model, say)
        compute = ComputeConfig(dtype=config.model_dtype)
        opened = open_model(path, compute, mesh, step=config.step, tokenizer=config.tokenizer, say=say)
        tokenizer = opened.tokenizer
        ids = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
        params = decoding_params(opened.model, opened.params)
        streams = len(prompts) == 1 and not config.json
        show = _printer(tokenizer, ids[0]) if streams else None
        started = time.perf_counter()
        answers = decode(opened.model, params, ids, sampling, eos_id=tokenizer.eos_id, seed=config.seed, stream=show)
        seconds = time.perf_counter() - started
    if not is_main_process():
        return
    texts = [_text(tokenizer, start, answer) for start, answer in zip(ids, answers, strict=True)]
    count = sum(map(len, answers))
    if streams:
        print()
    elif not config.json:
        print("\n\n".join(texts))
    say(f"{who}; {opened.source}: {count} tokens in {seconds:.1f} s, compilation included")
    if config.json:
        print(json.dumps({"text": texts[0], "texts": texts, "tokens": count, "model": opened.source}))


def _prompts(config: GenerateConfig) -> list[str]:
    if config.prompts is None:
        return [config.prompt]
    file = epath.Path(config.prompts)
    if not file.exists():
        raise UserError(f"--prompts {file}: no such file")
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--prompts {file}: has no prompt; write one a line")
    return lines


def _text(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """Prompt and answer as one text; decoded together, since a token's spelling depends on the one before."""
    return tokenizer.decode(prompt + answer)


def _printer(tokenizer: Tokenizer, prompt: list[int]) -> Callable[[list[list[int]]], None]:
    """Prints what is new of the only answer. A character may be spread over several tokens, so the last one waits
    until what follows it is known."""
    printed = 0

    def show(answers: list[list[int]]) -> None:
        nonlocal printed
        text = _text(tokenizer, prompt, answers[0]).rstrip("\ufffd")
        if is_main_process():
            print(text[printed:], end="", flush=True)
        printed = len(text)

    return show


def main() -> None:
    """Entry point."""
    sys.exit(run_command(generate, GenerateConfig, command="generate", commands=COMMANDS))


if __name__ == "__main__":
    main()
