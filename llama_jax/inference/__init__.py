"""Sampling, cached decoding and completion of text. `generate` is the way in from Python: text to text."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Only when it is asked for: the settings in this folder are read by every `--help`.
    if name == "generate":
        from llama_jax.inference.completion import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
