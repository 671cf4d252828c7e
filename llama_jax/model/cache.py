"""Keys and values of the tokens already read. Those of a layer lie in blocks, one array each, which are donated and
updated in place: a step that needs only the first slots of its rows reads whole arrays and copies nothing."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from llama_jax.core.arrays import Array, Float, Int
from llama_jax.core.mesh import platform
from llama_jax.core.sharding import constrain
from llama_jax.model.config import LlamaConfig

FIRST_BLOCK = 256
"""Slots of the first block; each further one doubles what is there."""
KEY_AXES = ("batch", "kv_heads", None, "length")
VALUE_AXES = ("batch", "kv_heads", "length", None)


class Block(struct.PyTreeNode):
    """Some slots of each row. Heads come first, and keys have their slots last: so scores and mixes are batches of
    plain products without a transposed operand, for which XLA for CPU has its fastest code."""

    key: Annotated[Any, Float[Array, "B K H S"]]
    value: Annotated[Any, Float[Array, "B K S H"]]
    key_scale: Annotated[Any, Float[Array, "B K 1 S"]] = None
    """Of each key that is kept in 8 bits (absmax over the head); None: keys are kept as they are."""
    value_scale: Annotated[Any, Float[Array, "B K S 1"]] = None

    @property
    def size(self) -> int:
        """Slots of a row."""
        return self.value.shape[2]

    def rows(self, rows: Int[Array, "R"] | None) -> "Block":
        """Those of some rows; None: of all."""
        return self if rows is None else jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), self)

    def write(
        self,
        key: Float[Array, "R T K H"],
        value: Float[Array, "R T K H"],
        rows: Int[Array, "R"] | None,
        at: Int[Array, "R T"],
    ) -> "Block":
        """With tokens written to the given slots; those of other blocks are left out."""
        at = jnp.where(at < 0, self.size, at)
        if self.key_scale is None:
            return Block(_put(self.key, key, rows, at, 3), _put(self.value, value, rows, at, 2))
        (key, key_scale), (value, value_scale) = _quantized(key), _quantized(value)
        return Block(
            _put(self.key, key, rows, at, 3),
            _put(self.value, value, rows, at, 2),
            _put(self.key_scale, key_scale, rows, at, 3),
            _put(self.value_scale, value_scale, rows, at, 2),
        )


class LayerCache(struct.PyTreeNode):
    """Slot s of a row holds the key and value of the row's s-th token. Slots not yet written hold garbage that the
    causal mask hides."""

    blocks: Annotated[Any, tuple[Block, ...]]

    def write(
        self,
        key: Float[Array, "R T K H"],
        value: Float[Array, "R T K H"],
        rows: Int[Array, "R"] | None,
        start: Int[Array, "R"],
    ) -> "LayerCache":
        """The cache with T tokens written from slot `start` of each row on.

        Args:
            rows: whose tokens they are; a number beyond the rows: nobody's. None: of all rows in their order.
        """
        at = start[:, None] + jnp.arange(key.shape[1])[None]
        blocks = []
        for block in self.blocks:
            blocks.append(block.write(key, value, rows, at))
            at = at - block.size
        return LayerCache(tuple(blocks))


def _put(kept: Array, new: Array, rows: Array | None, at: Array, axis: int) -> Array:
    """New tokens, `[R, T, K, …]`, in the slots `at` of an array with an axis of slots."""
    new = new.astype(kept.dtype)
    if rows is not None:
        slots = (slice(None),) * (axis - 1)
        return kept.at[(rows[:, None], *slots, at)].set(new, mode="drop")

    # Row by row, so that no device is sent what belongs to the rows of another.
    def put(kept: Array, new: Array, at: Array) -> Array:
        return kept.at[(slice(None),) * (axis - 1) + (at,)].set(jnp.moveaxis(new, 0, axis - 1), mode="drop")

    return jax.vmap(put)(kept, new, at)


def _quantized(array: Float[Array, "R T K H"]) -> tuple[Array, Array]:
    array = array.astype(jnp.float32)
    scale = jnp.max(jnp.abs(array), axis=-1, keepdims=True) / 127
    codes = jnp.round(array / jnp.where(scale > 0, scale, 1))
    return codes.astype(jnp.int8), scale


def block_sizes(slots: int) -> list[int]:
    """Slots of each block of rows of so many. On accelerators there is but one: to choose among programs by what a
    device has computed makes a GPU wait for its host, and a TPU fetch all blocks before it knows which it needs."""
    if platform() != "cpu":
        return [slots]
    ends = [min(FIRST_BLOCK, slots)]
    while ends[-1] < slots:
        ends.append(min(2 * ends[-1], slots))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def empty_cache(config: LlamaConfig, rows: int, slots: int, dtype: jnp.dtype) -> list[LayerCache]:
    """One empty cache a layer.

    Args:
        dtype: of keys and values; int8: in 8 bits, with a scale for each.
    """
    K, H = config.num_kv_heads, config.head_size

    def zeros(shape: tuple[int, ...], dtype: jnp.dtype, axes: tuple[str | None, ...]) -> Array:
        return constrain(jnp.zeros(shape, dtype), axes)

    def block(size: int) -> Block:
        plain = Block(
            zeros((rows, K, H, size), dtype, KEY_AXES),
            zeros((rows, K, size, H), dtype, VALUE_AXES),
        )
        if dtype != jnp.int8:
            return plain
        scale = jnp.dtype("float32")
        return plain.replace(
            key_scale=zeros((rows, K, 1, size), scale, KEY_AXES),
            value_scale=zeros((rows, K, size, 1), scale, VALUE_AXES),
        )

    return [LayerCache(tuple(map(block, block_sizes(slots)))) for _ in range(config.num_layers)]


def cache_axes(caches: list[LayerCache]) -> list[tuple[str | None, ...]]:
    """Logical axes of each array of caches (or of shapes of them), in their order as leaves."""
    fields = {"key": KEY_AXES, "key_scale": KEY_AXES, "value": VALUE_AXES, "value_scale": VALUE_AXES}
    return [fields[path[-1].name] for path, _ in jax.tree.leaves_with_path(caches)]
