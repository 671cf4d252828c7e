"""Measure a model: `python -m llama_jax.evaluate`."""

import dataclasses
import json
import sys
from typing import Any

import jax

from llama_jax.checkpoints.opening import OpenModel, find_model, open_model
from llama_jax.config import COMMANDS, EvaluateConfig
from llama_jax.core import sharding
from llama_jax.core.command_line import run_command
from llama_jax.core.distributed import is_main_process, start_up
from llama_jax.core.errors import UserError
from llama_jax.core.run import load_config
from llama_jax.data.config import DataConfig
from llama_jax.data.loader import text_bytes, validation_batches, zlib_bits_per_byte
from llama_jax.data.sources import Documents, hold_out, open_source
from llama_jax.evals.perplexity import perplexity
from llama_jax.model.config import ComputeConfig


def evaluate(config: EvaluateConfig) -> None:
    """Run the command."""

    def say(text: str) -> None:
        if is_main_process():
            print(text, file=sys.stderr if config.json else sys.stdout, flush=True)

    who = start_up(config.distributed)
    mesh = sharding.make_mesh(config.mesh)
    compute = ComputeConfig(dtype=config.model_dtype)
    with jax.set_mesh(mesh):
        path = find_model(config.model, say)
        opened = open_model(path, compute, mesh, step=config.step, tokenizer=config.tokenizer, say=say)
        data, documents = _documents(config, opened)
        say(who)
        parts = sharding.batch_parts(mesh)
        rows = -(-config.batch_size // parts) * parts
        batches = validation_batches(documents, opened.tokenizer, data, rows)
        result = perplexity(opened.model, opened.params, batches, text_bytes(documents))
    result |= {"task": config.task, "model": opened.source, "documents": len(documents)}
    result["zlib_bits_per_byte"] = zlib_bits_per_byte(documents)
    say(
        f"{opened.source} on {len(documents)} documents: {result['bits_per_byte']:.4f} bits per byte, "
        f"{result['loss']:.4f} nats per token, perplexity {result['perplexity']:.2f}; "
        f"zlib needs {result['zlib_bits_per_byte']:.4f} bits per byte"
    )
    if config.json and is_main_process():
        print(json.dumps(result))


def _documents(config: EvaluateConfig, opened: OpenModel) -> tuple[DataConfig, Documents]:
    """The documents to measure on, and how they are cut into rows.

    Raises:
        UserError: no data is named and the model is no run, or the rows are longer than the model's context.
    """
    trained: dict[str, Any] = load_config(opened.run)["data"] if opened.run is not None else {}
    context = opened.model.config.context_length
    length = config.sequence_length or trained.get("sequence_length", context)
    if length > context:
        raise UserError(f"--sequence_length {length}: exceeds the model's context of {context} tokens")
    if config.data is not None:
        data = DataConfig(source=config.data, text_field=config.text_field, sequence_length=length)
        return data, open_source(data)
    if opened.run is None:
        raise UserError("--data: needed, only a run has held-out documents of its own")
    data = dataclasses.replace(DataConfig(**trained), sequence_length=length)
    return data, hold_out(open_source(data), data.validation_fraction)[1]


def main() -> None:
    """Entry point."""
    sys.exit(run_command(evaluate, EvaluateConfig, command="evaluate", commands=COMMANDS))


if __name__ == "__main__":
    main()
