"""LLaMA in JAX and Flax: pretraining, fine-tuning and RLHF, from a laptop to a TPU pod.

Files in this folder are commands (`python -m llama_jax.pretrain`); folders are the parts they are built from.
From Python: `model, params, tokenizer = llama_jax.load(path)`, then `llama_jax.inference.generate(...)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_jax import inference
    from llama_jax.checkpoints.opening import load

__version__ = "0.1.0"
__all__ = ["__version__", "inference", "load"]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: importing the package must not cost the seconds that JAX takes.
    if name == "load":
        return importlib.import_module("llama_jax.checkpoints.opening").load
    if name == "inference":
        return importlib.import_module("llama_jax.inference")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
