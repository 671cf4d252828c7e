"""llama.cpp as the other side of `benchmark decode`: its server through xllamacpp, in this process, as many threads as
processors. Imports no JAX and runs in a process of its own, `turns.Side`."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llama_jax.benchmarks.decoding.task import SAMPLE_TOKENS, Arrivals, Task, facts
from llama_jax.benchmarks.turns import Turn, processors, serve


def main() -> None:
    """Entry point; see `turns.Side`."""
    serve(_prepare)


def _prepare(values: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    import xllamacpp

    task, threads = Task(**values), processors()
    server = xllamacpp.Server(_settings(xllamacpp, task, threads))
    pool = ThreadPoolExecutor(task.rows)
    # No token ends an answer, and no prompt is taken from one before.
    asked = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
    seed = 0

    def turn(streams: int) -> Arrivals:
        nonlocal seed
        seed += 1
        started = time.perf_counter()

        def stream(prompt: list[int]) -> list[float]:
            times: list[float] = []
            last: Any = None

            def came(part: Any) -> bool:
                nonlocal last
                last = part
                # A part may hold several tokens, where a character needs them.
                new = part["timings"]["predicted_n"] - len(times) if "timings" in part else 0
                times.extend([time.perf_counter() - started] * new)
                return False

            request = {"prompt": prompt, "n_predict": task.new_tokens, "stream": True, "timings_per_token": True}
            server.handle_completions(asked | request, came)
            if len(times) != task.new_tokens:
                raise RuntimeError(f"llama.cpp wrote {len(times)} tokens of {task.new_tokens}; its last word: {last}")
            return times

        return list(pool.map(stream, task.prompts(seed, streams)))

    request = {"prompt": list(task.sample), "n_predict": SAMPLE_TOKENS, "logprobs": 1}
    answered = server.handle_completions(asked | request)
    answer = [token["id"] for token in answered["choices"][0]["logprobs"]["content"]]
    for streams in (1, task.rows):
        turn(streams)
    return turn, facts(f"llama.cpp of xllamacpp {xllamacpp.__version__}, {threads} threads", answer)


def _settings(xllamacpp: Any, task: Task, threads: int) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = task.weights
    settings.n_parallel = task.rows
    # It is divided among the streams.
    settings.n_ctx = task.rows * (task.prompt_tokens + task.new_tokens)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.verbosity = -1
    return settings
