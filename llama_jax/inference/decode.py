"""Decoding with a cache: prompts are read in one pass (prefill), then one token a row is decoded at a time. Works on
token ids, not on text."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.placing import padded_rows, placed_rows
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.programs import decoding_params as decoding_params
from llama_jax.model.cache import LayerCache, empty_cache
from llama_jax.model.llama import LanguageModel

PROMPT_BUCKET = 64
"""Prompts are padded to a multiple of this, so that few programs are compiled."""
STREAM_STEPS = 8
"""Tokens decoded between two looks at what to print."""


def _filtered(logits: Float[Array, "B V"], config: SamplingConfig) -> Float[Array, "B V"]:
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
    return jax.vmap(draw)(rows, _filtered(logits, config), index).astype(jnp.int32)


class Rules(NamedTuple):
    """How tokens are chosen, and where an answer ends; what a compiled program is made for."""

    sampling: SamplingConfig
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer (kept in it)."""


class PromptBatch(struct.PyTreeNode):
    """Prompts as arrays, padded on the right."""

    tokens: Annotated[Any, Int[Array, "B P"]]
    lengths: Annotated[Any, Int[Array, "B"]]
    adapter_ids: Any = None
    """The adapter of each row, `[B]`, where the parameters hold several; else None."""


class DecodeState(struct.PyTreeNode):
    """A batch in the middle of generation. Row b holds `lengths[b]` tokens: its prompt and what was generated."""

    tokens: Annotated[Any, Int[Array, "B S"]]
    lengths: Annotated[Any, Int[Array, "B"]]
    prompt_lengths: Annotated[Any, Int[Array, "B"]]
    finished: Annotated[Any, Bool[Array, "B"]]
    logits: Annotated[Any, Float[Array, "B V"]]
    caches: Annotated[Any, list[LayerCache]]
    adapter_ids: Any = None
    """See `PromptBatch`."""


def prefill(model: LanguageModel, params: PyTree, prompts: PromptBatch, slots: int) -> DecodeState:
    """Read the prompts into fresh caches of `slots` tokens a row."""
    B, P = prompts.tokens.shape
    lengths = prompts.lengths
    caches = empty_cache(model.config, B, slots, jnp.dtype(model.compute.dtype))
    with jax.named_scope("prefill"):
        start = jnp.zeros(B, jnp.int32)
        hidden, caches = model.decode(params, prompts.tokens, caches, start, prompts.adapter_ids)
        # What padding wrote lies behind the row's last token: the causal mask hides it until it is overwritten.
        ends = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        logits = model.unembed(model.head(params), ends)
    tokens = jnp.zeros((B, slots), jnp.int32).at[:, :P].set(prompts.tokens)
    return DecodeState(tokens, lengths, lengths, lengths == 0, logits, caches, prompts.adapter_ids)


def decode_step(
    model: LanguageModel, params: PyTree, state: DecodeState, rules: Rules, key: PRNGKeyArray
) -> DecodeState:
    """Choose the next token of each unfinished row and read it. Finished rows stay as they are."""
    with jax.named_scope("sample"):
        chosen = sample(state.logits, rules.sampling, key, state.lengths - state.prompt_lengths)
        rows = jnp.arange(chosen.shape[0])
        chosen = jnp.where(state.finished, state.tokens[rows, state.lengths], chosen)
    with jax.named_scope("decode_step"):
        hidden, caches = model.decode(params, chosen[:, None], state.caches, state.lengths, state.adapter_ids)
        logits = model.unembed(model.head(params), hidden[:, 0])
    return state.replace(
        tokens=state.tokens.at[rows, state.lengths].set(chosen),
        lengths=state.lengths + ~state.finished,
        finished=state.finished | jnp.isin(chosen, jnp.array(rules.stop_ids, jnp.int32)),
        logits=logits,
        caches=caches,
    )


def generate(
    model: LanguageModel,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    rules: Rules,
    *,
    seed: int = 0,
    stream: Callable[[list[list[int]]], None] | None = None,
    adapter_ids: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue each prompt; prompts may differ in length.

    Args:
        params: in the list layout (`decoding_params`).
        prompts: token ids, at least one each.
        stream: called with the answers so far every few tokens. Without it prefill and the whole decoding are one
            compiled program.
        adapter_ids: the adapter of each prompt, where `params` holds several.

    Returns:
        The new tokens of each prompt. The same on any mesh, up to rounding.

    Raises:
        UserError: a prompt is empty, or does not fit into the model's context with the tokens asked for.
    """
    new_tokens = rules.sampling.max_new_tokens
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise UserError("prompt: has no token; start it with the beginning-of-sequence token")
    if longest + new_tokens > model.config.context_length:
        raise UserError(
            f"max_new_tokens: a prompt of {longest} tokens and {new_tokens} new ones exceed the model's context of "
            f"{model.config.context_length}"
        )
    width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    # One more slot than tokens: a finished row still looks at the slot behind its end. The same for all prompts of a
    # bucket, so that they share a program.
    slots = width + new_tokens + 1
    batch = _placed_prompts(prompts, width, adapter_ids)
    key = jax.random.key(seed)
    if stream is None:
        return _answers(_start(model, rules, slots, new_tokens, params, batch, key), prompts)
    count = min(STREAM_STEPS, new_tokens)
    state = _start(model, rules, slots, count, params, batch, key)
    while count < new_tokens and not _read(state)[2].all():
        stream(_answers(state, prompts))
        more = min(STREAM_STEPS, new_tokens - count)
        state = _resume(model, rules, more, params, state, key)
        count += more
    answers = _answers(state, prompts)
    stream(answers)
    return answers


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
    model: LanguageModel,
    rules: Rules,
    slots: int,
    count: int,
    params: PyTree,
    prompts: PromptBatch,
    key: PRNGKeyArray,
) -> DecodeState:
    return _decoded(model, rules, count, params, prefill(model, params, prompts, slots), key)


def _decoded(
    model: LanguageModel, rules: Rules, count: int, params: PyTree, state: DecodeState, key: PRNGKeyArray
) -> DecodeState:
    """The state after `count` more tokens, or fewer once every row has finished."""

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        return (carry[0] < count) & ~carry[1].finished.all()

    def turn(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        return carry[0] + 1, decode_step(model, params, carry[1], rules, key)

    return jax.lax.while_loop(unfinished, turn, (jnp.zeros((), jnp.int32), state))[1]


_resume = jax.jit(_decoded, static_argnums=(0, 1, 2), donate_argnums=4)


def _placed_prompts(prompts: Sequence[Sequence[int]], width: int, adapter_ids: Sequence[int] | None) -> PromptBatch:
    """Prompts as arrays over the mesh in use; empty rows are added until the mesh divides them."""
    rows = padded_rows(len(prompts))
    tokens, (lengths, adapters) = np.zeros((rows, width), np.int32), np.zeros((2, rows), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    if adapter_ids is None:
        return PromptBatch(placed_rows(tokens), placed_rows(lengths))
    adapters[: len(prompts)] = adapter_ids
    return PromptBatch(placed_rows(tokens), placed_rows(lengths), placed_rows(adapters))


def _same(arrays: PyTree) -> PyTree:
    # One function for all calls: of a new one each time a program would be compiled each time.
    return arrays


def _read(state: DecodeState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, lengths and whether finished, whole, on every process."""
    arrays = (state.tokens, state.lengths, state.finished)
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:
        arrays = jax.jit(_same, out_shardings=sharding.replicated(mesh))(arrays)
    return tuple(map(np.asarray, arrays))  # pyright: ignore[reportReturnType]


def _answers(state: DecodeState, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    tokens, lengths, _ = _read(state)
    return [tokens[row, len(prompt) : lengths[row]].tolist() for row, prompt in enumerate(prompts)]
