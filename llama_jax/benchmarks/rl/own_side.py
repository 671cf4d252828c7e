"""Our side of `benchmark grpo` and `benchmark ppo`, in its own process: iterations of the command, one after the
other."""

import atexit
import contextlib
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_jax.benchmarks import turns
from llama_jax.benchmarks.rl import rewarded
from llama_jax.benchmarks.rl.config import RlBenchmarkConfig
from llama_jax.checkpoints.opening import tokenizer_for
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core.errors import UserError
from llama_jax.core.processes.distributed import start_up
from llama_jax.data.instructions.records import Turn
from llama_jax.data.instructions.templates import Layout
from llama_jax.inference.compilations import compilations

PHASES = ("layout", "generation", "scoring", "update")
_WARM_UP = 2
"""Iterations after which nothing compiles."""
_PROMPTS = 64


def rl_turn(
    config: RlBenchmarkConfig, opened: Callable[[Any], contextlib.AbstractContextManager[Any]]
) -> tuple[turns.Turn, dict[str, Any]]:
    """Iterations, warmed up, which give the seconds of each phase, and facts; `prompts` of ids are among them.

    Args:
        opened: The iterations of a run with some settings, as `rl.running.iterations` gives them.

    Raises:
        UserError: JAX is not on CPU, or no prompt has as many tokens as are asked for.
    """
    run: Any = config.run
    who = start_up(run.distributed)
    if jax.devices()[0].platform != "cpu":
        raise UserError(f"--against {config.against}: compares on CPU, but this is {who}; set JAX_PLATFORMS=cpu")
    made: dict[str, Any] = {
        "run_dir": "run",
        "data": replace(run.data, source=_written_prompts(config), validation_examples=0),
    }
    if not config.with_reward_model:
        made["rewards"] = replace(run.rewards, functions=(f"{rewarded.__file__}:remainder",))
    stack = contextlib.ExitStack()
    atexit.register(stack.close)  # and not before: the process is of this run alone
    iterations = stack.enter_context(opened(replace(run, **made)))
    expected = run.rollout.completions * run.rollout.max_new_tokens

    def turn(count: int) -> dict[str, Any]:
        before = compilations()
        records = [iterations.next() for _ in range(count)]
        if any(record["completion_tokens_min"] != run.rollout.max_new_tokens for record in records):
            raise RuntimeError(f"an iteration did not sample {expected} tokens")
        seconds = {phase: statistics.mean(record[f"{phase}_seconds"] for record in records) for phase in PHASES}
        return {"seconds": seconds, "compilations": compilations() - before}

    turn(_WARM_UP)
    return turn, {
        "what": f"jax {jax.__version__}, {turns.processors()} threads",
        "trained": iterations.trained,
        "prompts": iterations.prompts,
    }


def _written_prompts(config: RlBenchmarkConfig) -> str:
    """A file of prompts with the tokens that are asked for."""
    run: Any = config.run
    weights = open_weights(str(run.model), step=run.step, say=_unsaid)
    tokenizer = tokenizer_for(weights.files, weights.config, str(run.model), given=run.tokenizer)
    layout, random = Layout(run.data.template, tokenizer), np.random.RandomState(run.seed)
    texts = [text_of(layout, config.prompt_tokens, random) for _ in range(_PROMPTS)]
    file = Path("prompts.jsonl").absolute()
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(file)


def text_of(layout: Layout, tokens: int, random: np.random.RandomState) -> str:
    """Random letters that are exactly so many tokens as a prompt.

    Raises:
        UserError: none were found.
    """
    text, letters = "a", "abcdefghijklmnopqrstuvwxyz"
    for _ in range(100 * tokens):
        missing = tokens - len(layout.prompt_ids([Turn("user", text)]))
        if not missing:
            return text
        if missing < 0:
            text = "a"
        text += " " * random.randint(2) + letters[random.randint(len(letters))]
    raise UserError(f"--prompt_tokens {tokens}: no prompt of so many was found in template {layout.name}")


def _unsaid(line: str) -> None:
    """Progress that nobody reads."""
