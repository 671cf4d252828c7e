"""Keys and values of the tokens already read, one pair of arrays a layer, so that each can be donated and updated in
place."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from llama_jax.core.arrays import Array, Float, Int
from llama_jax.core.sharding import constrain
from llama_jax.model.config import LlamaConfig


class LayerCache(struct.PyTreeNode):
    """Slot s of a row holds the key and value of the row's s-th token. Slots not yet written hold garbage that the
    causal mask hides."""

    key: Annotated[Any, Float[Array, "B S K H"]]
    value: Annotated[Any, Float[Array, "B S K H"]]

    def write(
        self, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], start: Int[Array, "B"]
    ) -> "LayerCache":
        """The cache with T tokens written from slot `start` of each row on."""
        put = jax.vmap(lambda slots, new, first: jax.lax.dynamic_update_slice_in_dim(slots, new, first, axis=0))
        return LayerCache(key=put(self.key, key, start), value=put(self.value, value, start))


def empty_cache(config: LlamaConfig, rows: int, slots: int, dtype: jnp.dtype) -> list[LayerCache]:
    """One empty cache a layer."""
    shape = (rows, slots, config.num_kv_heads, config.head_size)

    def zeros() -> Array:
        return constrain(jnp.zeros(shape, dtype), ("batch", "length", "kv_heads", None))

    return [LayerCache(key=zeros(), value=zeros()) for _ in range(config.num_layers)]
