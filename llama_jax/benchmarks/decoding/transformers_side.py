"""Hugging Face transformers' `generate` as the other side of `benchmark decode`: eager PyTorch on CPU, float32, the
streams as one batch. Imports no JAX and runs in a process of its own, `turns.Side`."""

import time
from typing import Any

from llama_jax.benchmarks.decoding.task import SAMPLE_TOKENS, Arrivals, Task, facts
from llama_jax.benchmarks.turns import Turn, processors, serve


def main() -> None:
    """Entry point; see `turns.Side`."""
    serve(_prepare)


def _prepare(values: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    import torch
    import transformers

    task, threads = Task(**values), processors()
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(task.weights, dtype=torch.float32)
    # No token ends an answer.
    model.generation_config.eos_token_id = None
    seed = 0

    def write(prompts: list[list[int]], new_tokens: int) -> tuple[Any, list[float]]:
        times: list[float] = []
        unfinished = torch.zeros(len(prompts), dtype=torch.bool)

        def came(*_: Any, **__: Any) -> Any:
            times.append(time.perf_counter() - started)
            return unfinished

        ids = torch.tensor(prompts)
        criteria = transformers.StoppingCriteriaList([came])  # pyright: ignore[reportArgumentType]
        started = time.perf_counter()
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=criteria,
        )
        return written[:, ids.shape[1] :], times

    def turn(streams: int) -> Arrivals:
        nonlocal seed
        seed += 1
        return [write(task.prompts(seed, streams), task.new_tokens)[1]] * streams

    answer = write([list(task.sample)], SAMPLE_TOKENS)[0][0].tolist()
    for streams in (1, task.rows):
        turn(streams)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return turn, facts(f"{versions}, {threads} threads", answer)
