"""Choosing the next token from logits."""

import jax
import jax.numpy as jnp

from llama_jax.core.arrays import Array, Float, Int, PRNGKeyArray
from llama_jax.inference.config import SamplingConfig


def filtered(logits: Float[Array, "B V"], config: SamplingConfig) -> Float[Array, "B V"]:
    """Logits divided by the temperature, with tokens outside of top-k and top-p at minus infinity.

    Top-p keeps the most likely tokens up to and including the one with which their probability reaches `top_p`
    (Holtzman et al. 2019, arXiv:1904.09751, section 3.1); it sees what top-k left. Temperature must not be 0.
    """
    logits = logits / config.temperature
    if config.top_k:
        kth = jax.lax.top_k(logits, min(config.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if config.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.min(jnp.where(before < config.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


def sample(
    logits: Float[Array, "B V"], config: SamplingConfig, key: PRNGKeyArray, index: Int[Array, "B"]
) -> Int[Array, "B"]:
    """The next token of each row. Row b's random number comes from `key`, b and `index[b]` (the number of the token in
    its answer), so it depends on nothing else in the batch. Temperature 0 takes the most likely token, the lowest id
    among equals."""
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(row: Array, row_logits: Array, token: Array) -> Array:
        row_key = jax.random.fold_in(jax.random.fold_in(key, row), token)
        return jax.random.categorical(row_key, row_logits)

    rows = jnp.arange(logits.shape[0])
    return jax.vmap(draw)(rows, filtered(logits, config), index).astype(jnp.int32)
