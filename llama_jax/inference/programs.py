"""What an engine runs on devices: a few compiled programs over a fixed number of slots, whose state is donated from
each to the next. Knows token ids and rows, no queue and no text."""

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Bool, Float, Int, PyTree, UInt32
from llama_jax.core.sharding import constrain
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.requests import Request
from llama_jax.inference.sampling import History, Rules, choose, rules_of
from llama_jax.model import paths
from llama_jax.model.cache import LayerCache, empty_cache
from llama_jax.model.llama import LanguageModel
from llama_jax.model.lora import without_adapter

GOES_ON, STOP, LENGTH, ERROR = range(4)
"""What is said of a row after each token."""


class Slots(struct.PyTreeNode):
    """The rows of an engine, each in the middle of an answer or idle.

    Row b has read `lengths[b]` tokens into its caches; where it is active, it reads `tokens[b, lengths[b]]` next. What
    lies behind is garbage: an idle row that is decoded along with others writes there.
    """

    tokens: Annotated[Any, Int[Array, "B S"]]
    lengths: Annotated[Any, Int[Array, "B"]]
    prompt_lengths: Annotated[Any, Int[Array, "B"]]
    active: Annotated[Any, Bool[Array, "B"]]
    adapters: Annotated[Any, Int[Array, "B"]]
    rules: Annotated[Any, Rules]
    caches: Annotated[Any, list[LayerCache]]


class Chunk(NamedTuple):
    """Pieces of prompts to read, in rows of their own."""

    tokens: Annotated[Any, Int[Array, "P T"]]
    """Padded on the right."""
    rows: Annotated[Any, Int[Array, "P"]]
    """Slot of each; the number of slots: none, the row is padding."""
    starts: Annotated[Any, Int[Array, "P"]]
    """Tokens of the prompt before the piece; start + T never exceeds the length of a slot."""
    counts: Annotated[Any, Int[Array, "P"]]
    """Tokens of the piece."""
    adapters: Annotated[Any, Int[Array, "P"]]


class Output(NamedTuple):
    """What a step of decoding gives for each row it decoded, whole on every process."""

    ids: Int[Array, "B"]
    finish: Int[Array, "B"]
    emitted: Bool[Array, "B"]
    """Whether the row was active, and so has a new token."""
    logprobs: Float[Array, "B 2"]
    """Raw, and of the distribution sampled from."""
    top_ids: Int[Array, "B top"]
    top_logprobs: Float[Array, "B top"]


def adapter_count(layers: PyTree) -> int:
    """Number of the adapters that rows choose among, of parameters in the list layout; 0 where there is no choice."""
    adapter = without_adapter(layers)[1]
    scales = [leaf for path, leaf in tree.flatten(adapter or {}).items() if paths.name_of(path) == "scale"]
    return scales[0].shape[0] - 1 if scales and scales[0].ndim else 0


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_slots(model: LanguageModel, count: int, length: int, cache_dtype: jnp.dtype) -> Slots:
    """Idle slots of `length` tokens."""
    zeros = jnp.zeros(count, jnp.int32)
    rules = rules_of(Request([0], SamplingConfig()), model.config.padded_vocab_size)
    return Slots(
        tokens=jnp.zeros((count, length), jnp.int32),
        lengths=zeros,
        prompt_lengths=zeros,
        active=zeros > 0,
        adapters=zeros,
        rules=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), rules),
        caches=empty_cache(model.config, count, length, cache_dtype),
    )


def mask_words(model: LanguageModel) -> int:
    """Words of a row of the masks that `decode` takes, see `Constraint.allowed`."""
    return -(-model.config.padded_vocab_size // 32)


def _taken(arrays: PyTree, rows: Array | None) -> PyTree:
    return arrays if rows is None else jax.tree.map(lambda leaf: leaf.at[rows].get(mode="clip"), arrays)


def _put(arrays: PyTree, rows: Array | None, new: PyTree) -> PyTree:
    if rows is None:
        return jax.tree.map(lambda old, new: new.astype(old.dtype), arrays, new)
    return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), arrays, new)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
@jax.named_scope("prefill")
def prefill(model: LanguageModel, params: PyTree, slots: Slots, chunk: Chunk) -> Slots:
    """Read pieces of prompts into the caches. Their logits nobody asks for: the last token of a prompt is read by
    `decode`."""
    adapters = chunk.adapters if adapter_count(params) else None
    _, caches = model.decode(params, chunk.tokens, slots.caches, chunk.starts, adapters, rows=chunk.rows)
    return slots.replace(
        lengths=_put(slots.lengths, chunk.rows, chunk.starts + chunk.counts),
        active=_put(slots.active, chunk.rows, jnp.zeros_like(chunk.rows, jnp.bool_)),
        caches=caches,
    )


@functools.partial(jax.jit, donate_argnums=0)
def begin(
    slots: Slots,
    rows: Int[Array, "P"],
    tokens: Int[Array, "P S"],
    lengths: Int[Array, "P"],
    adapters: Int[Array, "P"],
    rules: Rules,
) -> Slots:
    """Let rows answer whose prompts have been read but for their last tokens.

    Args:
        rows: the number of slots: none.
        tokens: the prompts, padded.
        lengths: of the prompts.
        rules: with a leading axis P.
    """
    own = {
        "tokens": tokens,
        "lengths": lengths - 1,
        "prompt_lengths": lengths,
        "active": jnp.ones_like(rows, jnp.bool_),
        "adapters": adapters,
        "rules": rules,
    }
    return slots.replace(**{name: _put(getattr(slots, name), rows, new) for name, new in own.items()})


@functools.partial(jax.jit, donate_argnums=0)
def stop(slots: Slots, row: Int[Array, ""]) -> tuple[Slots, Bool[Array, ""]]:
    """Make a row idle; tells whether all that it has read are numbers."""
    own = [leaf.at[row].get(mode="clip") for leaf in jax.tree.leaves(slots.caches)]
    sound = jnp.stack([jnp.isfinite(leaf).all() for leaf in own]).all()
    return slots.replace(active=slots.active.at[row].set(False, mode="drop")), constrain(sound, ())


@functools.partial(jax.jit, donate_argnums=0)
def copy_prompt(slots: Slots, source: Int[Array, ""], target: Int[Array, ""], length: Int[Array, ""]) -> Slots:
    """Give a row what another one has read, of which the first `length` tokens will be used."""

    def copied(cache: Array) -> Array:
        return cache.at[target].set(cache[source], mode="drop")

    return slots.replace(
        lengths=slots.lengths.at[target].set(length, mode="drop"), caches=jax.tree.map(copied, slots.caches)
    )


@functools.partial(jax.jit, donate_argnums=0)
def clear(slots: Slots, row: Int[Array, ""]) -> Slots:
    """Overwrite all that a row has read: what is not a number is not hidden by a weight of zero."""
    caches = jax.tree.map(lambda cache: cache.at[row].set(0, mode="drop"), slots.caches)
    return slots.replace(lengths=slots.lengths.at[row].set(0, mode="drop"), caches=caches)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
@jax.named_scope("decode_step")
def decode(
    model: LanguageModel, params: PyTree, slots: Slots, rows: Int[Array, "R"] | None, masks: UInt32[Array, "R words"]
) -> tuple[Slots, Output]:
    """Read the next token of each active row, and choose the one after it.

    Args:
        rows: the slots to decode, every active one among them; the number of slots: none, the row is padding. None: all
            in their order.
        masks: tokens that constrained rows may take, see `choose`.
    """
    own: Slots = _taken(slots.replace(caches=[]), rows)
    places = jnp.arange(own.lengths.shape[0])
    read = own.tokens[places, own.lengths]
    adapters = own.adapters if adapter_count(params) else None
    longest = jnp.where(own.active, own.lengths, 0).max() + 1
    hidden, caches = model.decode(
        params, read[:, None], slots.caches, own.lengths, adapters, rows=rows, longest=longest
    )
    logits = model.unembed(model.head(params), hidden[:, 0])
    index = own.lengths + 1 - own.prompt_lengths
    emitted = own.active if rows is None else own.active & (rows < slots.lengths.shape[0])
    history = History(own.tokens, own.prompt_lengths, own.lengths + 1)
    choice = choose(logits, own.rules.of_active(emitted), history, masks, index)

    stopped = (choice.ids[:, None] == own.rules.stop_ids).any(axis=-1)
    finish = jnp.where(stopped, STOP, jnp.where(index + 1 >= own.rules.max_new_tokens, LENGTH, GOES_ON))
    finish = jnp.where(choice.valid, finish, ERROR)
    after = jnp.where(emitted, own.lengths + 1, own.tokens.shape[1])
    new = own.replace(
        tokens=own.tokens.at[places, after].set(choice.ids, mode="drop"),
        lengths=own.lengths + emitted,
        active=emitted & (finish == GOES_ON),
    )
    changed = ("tokens", "lengths", "active")
    slots = slots.replace(
        caches=caches, **{name: _put(getattr(slots, name), rows, getattr(new, name)) for name in changed}
    )
    logprobs = jnp.stack([choice.logprob, choice.sampled_logprob], axis=1)
    output = Output(choice.ids, finish, emitted, logprobs, choice.top_ids, choice.top_logprobs)
    return slots, jax.tree.map(lambda array: constrain(array, (None,) * array.ndim), output)
