"""Our side of `benchmark decode`: the engine, as every command uses it."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.benchmarks.decoding.task import SAMPLE_TOKENS, Arrivals, Task, facts
from llama_jax.benchmarks.turns import Turn, processors
from llama_jax.checkpoints.opening import ModelReference, open_model
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import start_up
from llama_jax.inference.completion import encode_prompt
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.layout import decoding_params
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.model.quantized import cast_plain


def engine_turn(config: BenchmarkConfig) -> tuple[Turn, dict[str, Any]]:
    """The engine, warm, in its own process, and facts about model, memory and device.

    Raises:
        UserError: the model cannot be opened, has too short a context, or JAX is not on CPU beside another program.
    """
    who = start_up(config.run.distributed)
    device = jax.devices()[0]
    if config.against is not None and device.platform != "cpu":
        raise UserError(f"--against {config.against}: compares on CPU, but this is {who}; set JAX_PLATFORMS=cpu")
    jax.set_mesh(make_mesh(config.run.mesh))
    model, layers, sample = _opened(config)
    sizes = decoding_sizes(config, model)
    length = max(config.decode_tokens, len(sample) + SAMPLE_TOKENS)
    engine = Engine(model, layers, slots=config.decode_rows, length=length)
    del layers
    started = time.perf_counter()
    engine.warm_up()
    warm_up_seconds = time.perf_counter() - started
    task = Task("", sample, config.prompt_tokens, config.new_tokens, config.decode_rows)
    greedy = SamplingConfig(max_new_tokens=task.new_tokens, temperature=0.0)
    seed = 0

    def turn(streams: int) -> Arrivals:
        nonlocal seed
        seed += 1
        prompts = task.prompts(seed, streams)
        started = time.perf_counter()
        handles = {engine.submit(Request(prompt, greedy)): row for row, prompt in enumerate(prompts)}
        times: Arrivals = [[] for _ in handles]
        while engine.waiting or engine.active:
            for token in engine.step():
                times[handles[token.handle]].append(time.perf_counter() - started)
        return times

    short = SamplingConfig(max_new_tokens=SAMPLE_TOKENS, temperature=0.0)
    answer = [token.id for token in engine.run([Request(sample, short)])[0]] if sample else []
    for streams in (1, task.rows):
        turn(streams)
    return turn, facts(
        f"jax {jax.__version__}, {who.partition(', ')[2]}, {processors()} threads, {model.compute.dtype}",
        answer,
        sample=sample,
        device_kind=device.device_kind,
        platform=device.platform,
        devices=jax.device_count(),
        warm_up_seconds=warm_up_seconds,
        programs=engine.compilations,
        **sizes,
    )


def _opened(config: BenchmarkConfig) -> tuple[LanguageModel, PyTree, list[int]]:
    """The model, its parameters in the list layout, on the mesh in use, and the sample as it reads it (empty for random
    weights)."""
    if config.weights is not None:
        opened = open_model(ModelReference(config.weights), config.run.compute, say=lambda _: None)
        sample = encode_prompt(opened.tokenizer, "The capital of France is")
        return opened.model, decoding_params(opened.model, opened.params, consume=True), sample
    model = language_model(config.run.model.architecture, config.run.compute)
    return model, decoding_params(model, _random(model, config.run.seed), consume=True), []


def _random(model: LanguageModel, seed: int) -> PyTree:
    """Parameters as training begins with them, in the compute type. Drawn one after another, so that no float32 copy of
    the whole model is ever there."""
    dtype = jnp.dtype(model.compute.dtype)
    places = tree.flatten(sharding.shardings_of(jax.sharding.get_mesh(), model.shapes(), model.axes))

    def drawn(path: str, place: Any) -> Any:
        def one(key: Any) -> Any:
            return tree.flatten(cast_plain(model.init(key), dtype))[path]

        return jax.jit(one, out_shardings=place)(jax.random.key(seed))

    return tree.unflatten({path: drawn(path, place) for path, place in places.items()})


def decoding_sizes(config: BenchmarkConfig, model: LanguageModel) -> dict[str, Any]:
    """Bytes and FLOPs of decoding with weights and caches in the type of computation, by formula.

    Raises:
        UserError: prompt and answer exceed the model's context.
    """
    shape = model.config
    if config.decode_tokens > shape.context_length:
        raise UserError(
            f"--prompt_tokens {config.prompt_tokens}: with {config.new_tokens} new ones exceeds the model's context of "
            f"{shape.context_length}"
        )
    itemsize, parameters = jnp.dtype(model.compute.dtype).itemsize, model.parameter_count()
    a_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_size * itemsize
    # Of a table that is not the head too, one row a token is looked up.
    read = parameters - (0 if shape.tie_embeddings else shape.vocab_size * shape.width)
    return {
        "parameters": parameters,
        "weights_bytes": parameters * itemsize,
        "weights_bytes_read": read * itemsize,
        "cache_bytes": config.decode_rows * config.decode_tokens * a_token,
        "cache_bytes_a_token": a_token,
        "flops_a_token": 2 * read,
        "flops_a_cached_token": 4 * shape.num_layers * shape.num_heads * shape.head_size,
    }
