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


class Block(struct.PyTreeNode):
    """Some slots of each row, heads before slots, so that scores and mixes are batches of plain products."""

    key: Annotated[Any, Float[Array, "B K S H"] | Float[Array, "B K H S"]]
    value: Annotated[Any, Float[Array, "B K S H"]]
    key_scale: Annotated[Any, Float[Array, "B K S 1"] | Float[Array, "B K 1 S"]] = None
    """Of each key that is kept in 8 bits (absmax over the head); None: keys are kept as they are."""
    value_scale: Annotated[Any, Float[Array, "B K S 1"]] = None
    key_axis: int = struct.field(pytree_node=False, default=2)
    """That of the slots of keys. Last, no operand of a product is transposed, for which XLA for CPU has its fastest
    code; third as those of values, a key is written in one piece, for which XLA for TPU else copies the array."""

    @property
    def size(self) -> int:
        """Slots of a row."""
        return self.value.shape[2]

    @property
    def axes(self) -> dict[str, int]:
        """The axis of slots of each array there is."""
        axes = {"key": self.key_axis, "value": 2, "key_scale": self.key_axis, "value_scale": 2}
        return {name: axis for name, axis in axes.items() if getattr(self, name) is not None}

    def rows(self, rows: Int[Array, "R"] | None) -> "Block":
        """Those of some rows; None: of all."""
        return self if rows is None else jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), self)

    def of_tokens(self, key: Float[Array, "R T K H"], value: Float[Array, "R T K H"]) -> "Block":
        """A block of tokens alone, kept as they would be here."""
        new = self._kept(key, value)
        return self.replace(**{name: jnp.moveaxis(new[name], 1, axis) for name, axis in self.axes.items()})

    def write(
        self,
        key: Float[Array, "R T K H"],
        value: Float[Array, "R T K H"],
        rows: Int[Array, "R"] | None,
        at: Int[Array, "R T"],
    ) -> "Block":
        """With tokens written to the given slots; those of other blocks are left out."""
        at, new = jnp.where(at < 0, self.size, at), self._kept(key, value)
        return self.replace(
            **{name: _put(getattr(self, name), new[name], rows, at, axis) for name, axis in self.axes.items()}
        )

    def _kept(self, key: Array, value: Array) -> dict[str, Array]:
        """What is kept of tokens, `[R, T, K, …]` each."""
        if self.key_scale is None:
            return {"key": key.astype(self.key.dtype), "value": value.astype(self.value.dtype)}
        (key, key_scale), (value, value_scale) = _quantized(key), _quantized(value)
        return {"key": key, "value": value, "key_scale": key_scale, "value_scale": value_scale}


class LayerCache(struct.PyTreeNode):
    """Slot s of a row holds the key and value of the row's s-th token. Slots not yet written hold garbage that the
    causal mask hides."""

    blocks: Annotated[Any, tuple[Block, ...]]
    pending: Annotated[Any, tuple[Float[Array, "R T K H"], Float[Array, "R T K H"]]] = None
    """Keys and values of the tokens that a step reads, which attention sees beside the blocks, until `settled`."""
    late: bool = struct.field(pytree_node=False, default=False)
    """Tokens are written after the last layer, not before attention in their own: see `settled`."""

    def add(
        self,
        key: Float[Array, "R T K H"],
        value: Float[Array, "R T K H"],
        rows: Int[Array, "R"] | None,
        start: Int[Array, "R"],
    ) -> "LayerCache":
        """The cache with T tokens from slot `start` of each row on, pending or written.

        Args:
            rows: whose tokens they are; a number beyond the rows: nobody's. None: of all rows in their order.
        """
        return self.replace(pending=(key, value)) if self.late else self.write(key, value, rows, start)

    def write(
        self,
        key: Float[Array, "R T K H"],
        value: Float[Array, "R T K H"],
        rows: Int[Array, "R"] | None,
        start: Int[Array, "R"],
    ) -> "LayerCache":
        """As `add`, the tokens written."""
        at = start[:, None] + jnp.arange(key.shape[1])[None]
        blocks = []
        for block in self.blocks:
            blocks.append(block.write(key, value, rows, at))
            at = at - block.size
        return self.replace(blocks=tuple(blocks), pending=None)


def settled(
    hidden: Float[Array, "R T D"], caches: list[LayerCache], rows: Int[Array, "R"] | None, start: Int[Array, "R"]
) -> tuple[Float[Array, "R T D"], list[LayerCache]]:
    """The residual stream behind the last layer, and the caches with their pending tokens written.

    The barrier holds these back until the residual stream is there: then nothing reads a block any more, and it is
    updated in place. Else XLA for TPU copies blocks, to go on reading what they were.
    """
    if not any(cache.late for cache in caches):
        return hidden, caches
    hidden, pending = jax.lax.optimization_barrier((hidden, [cache.pending for cache in caches]))
    return hidden, [cache.write(key, value, rows, start) for cache, (key, value) in zip(caches, pending, strict=True)]


def _put(kept: Array, new: Array, rows: Array | None, at: Array, axis: int) -> Array:
    """New tokens, `[R, T, K, …]`, in the slots `at` of an array with an axis of slots."""
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
    """Slots of each block of rows of so many."""
    ends = [min(FIRST_BLOCK, slots)]
    while ends[-1] < slots:
        ends.append(min(2 * ends[-1], slots))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def empty_cache(config: LlamaConfig, rows: int, slots: int, dtype: jnp.dtype) -> list[LayerCache]:
    """One empty cache a layer.

    On accelerators it has but one block: to choose among programs by what a device has computed makes a GPU wait for
    its host, and a TPU fetch all blocks before it knows which it needs.

    Args:
        dtype: of keys and values; int8: in 8 bits, with a scale for each.
    """
    K, H, on_cpu = config.num_kv_heads, config.head_size, platform() == "cpu"
    key_axis = 3 if on_cpu else 2

    def zeros(size: int, width: int, dtype: jnp.dtype, axis: int) -> Array:
        shape = (rows, K, width, size) if axis == 3 else (rows, K, size, width)
        return constrain(jnp.zeros(shape, dtype), _axes(axis))

    def block(size: int) -> Block:
        plain = Block(zeros(size, H, dtype, key_axis), zeros(size, H, dtype, 2), key_axis=key_axis)
        if dtype != jnp.int8:
            return plain
        scale = jnp.dtype("float32")
        return plain.replace(key_scale=zeros(size, 1, scale, key_axis), value_scale=zeros(size, 1, scale, 2))

    sizes = block_sizes(slots) if on_cpu else [slots]
    return [LayerCache(tuple(map(block, sizes)), late=not on_cpu) for _ in range(config.num_layers)]


def cache_axes(caches: list[LayerCache]) -> list[tuple[str | None, ...]]:
    """Logical axes of each array of caches (or of shapes of them), in their order as leaves."""
    return [_axes(axis) for cache in caches for block in cache.blocks for axis in block.axes.values()]


def _axes(slots: int) -> tuple[str | None, ...]:
    return ("batch", "kv_heads", None, "length") if slots == 3 else ("batch", "kv_heads", "length", None)
