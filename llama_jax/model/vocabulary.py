"""More tokens for a model that has been trained. Independent of tokenizers."""

from dataclasses import replace

import jax.numpy as jnp

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.errors import UserError
from llama_jax.model import paths
from llama_jax.model.config import LlamaConfig

_TOKEN_AXIS = {paths.TABLE: 0, paths.HEAD: 1}


def grow_vocabulary(params: PyTree, config: LlamaConfig, vocab_size: int) -> tuple[LlamaConfig, PyTree]:
    """Make room for new tokens, whose rows of embedding and head are the mean of the old ones, as Stanford Alpaca does
    (tatsu-lab/stanford_alpaca, train.py): a new token then starts out as likely as the average one.

    Args:
        params: Parameters in either layout. May be traced.
        vocab_size: Tokens afterwards. Padding up to `config.vocab_multiple` comes on top, and is zero.

    Returns:
        The configuration and the parameters of the larger model, in the types they had.

    Raises:
        UserError: the vocabulary would shrink.
    """
    if vocab_size < config.vocab_size:
        raise UserError(
            f"vocab_size: {vocab_size} is less than the model's {config.vocab_size}; a vocabulary can only grow"
        )
    grown = replace(config, vocab_size=vocab_size)

    def rows_of(old: Float[Array, "V D"]) -> Float[Array, "W D"]:
        known = old[: config.vocab_size]
        mean = known.mean(axis=0, keepdims=True, dtype=jnp.float32).astype(old.dtype)
        added = jnp.broadcast_to(mean, (vocab_size - config.vocab_size, old.shape[1]))
        padding = jnp.zeros((grown.padded_vocab_size - vocab_size, old.shape[1]), old.dtype)
        return jnp.concatenate([known, added, padding])

    leaves = tree.flatten(params)
    for path, axis in _TOKEN_AXIS.items():
        if path in leaves:
            leaves[path] = jnp.moveaxis(rows_of(jnp.moveaxis(leaves[path], axis, 0)), 0, axis)
    return grown, tree.unflatten(leaves)
