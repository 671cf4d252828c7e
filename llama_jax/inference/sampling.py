"""Choosing the next token of each row from its logits, by the row's own rules; rows never influence each other.

In this order: penalties, biases, constraint, temperature, top-k, top-p, min-p, draw. What is expensive runs only where
some row asks for it. Nothing is sorted: a filter is the threshold behind which the tokens it drops lie, found by
halving the range of the floating-point numbers."""

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from llama_jax.core.arrays import Array, Bool, Float, Int, UInt32
from llama_jax.core.mesh import platform
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.requests import MAX_BIASES, MAX_STOP_IDS, MAX_TOP_LOGPROBS, Request

NEAR = 256
"""Likeliest tokens of a row among which thresholds are looked for first, on CPU, where finding these takes a third of
the time that the search among all does."""


class Rules(struct.PyTreeNode):
    """How the tokens of each row are chosen and where its answer ends."""

    temperature: Annotated[Any, Float[Array, "B"]]
    top_k: Annotated[Any, Int[Array, "B"]]
    top_p: Annotated[Any, Float[Array, "B"]]
    min_p: Annotated[Any, Float[Array, "B"]]
    repetition_penalty: Annotated[Any, Float[Array, "B"]]
    presence_penalty: Annotated[Any, Float[Array, "B"]]
    frequency_penalty: Annotated[Any, Float[Array, "B"]]
    bias_ids: Annotated[Any, Int[Array, "B biases"]]
    """Padded with the size of the vocabulary."""
    biases: Annotated[Any, Float[Array, "B biases"]]
    biased: Annotated[Any, Bool[Array, "B"]]
    constrained: Annotated[Any, Bool[Array, "B"]]
    top_logprobs: Annotated[Any, Int[Array, "B"]]
    """-1: no log-probabilities."""
    stop_ids: Annotated[Any, Int[Array, "B stops"]]
    """Padded with -1."""
    max_new_tokens: Annotated[Any, Int[Array, "B"]]
    key: Annotated[Any, UInt32[Array, "B 2"]]
    """Made from the seed, the number of the prompt and the number of the answer."""

    def of_active(self, active: Bool[Array, "B"]) -> "Rules":
        """The same, with idle rows asking for nothing that takes time."""
        return self.replace(
            temperature=jnp.where(active, self.temperature, 0.0),
            repetition_penalty=jnp.where(active, self.repetition_penalty, 1.0),
            presence_penalty=jnp.where(active, self.presence_penalty, 0.0),
            frequency_penalty=jnp.where(active, self.frequency_penalty, 0.0),
            biased=self.biased & active,
            constrained=self.constrained & active,
            top_logprobs=jnp.where(active, self.top_logprobs, -1),
        )


class History(NamedTuple):
    """The tokens each row holds so far."""

    tokens: Int[Array, "B S"]
    prompt_lengths: Int[Array, "B"]
    lengths: Int[Array, "B"]
    """Tokens of prompt and answer so far."""


class Choice(NamedTuple):
    """The next token of each row. Log-probabilities are there where `Rules.top_logprobs` asks for them."""

    ids: Int[Array, "B"]
    valid: Bool[Array, "B"]
    """Whether the row's logits are numbers."""
    logprob: Float[Array, "B"]
    sampled_logprob: Float[Array, "B"]
    top_ids: Int[Array, "B top"]
    top_logprobs: Float[Array, "B top"]


def rules_of(request: Request, vocab_size: int) -> Rules:
    """The rules of one request, NumPy values without the axis of rows."""
    sampling: SamplingConfig = request.sampling
    bias_ids, biases = np.full(MAX_BIASES, vocab_size, np.int32), np.zeros(MAX_BIASES, np.float32)
    given: Mapping[int, float] = request.logit_bias
    bias_ids[: len(given)], biases[: len(given)] = list(given), list(given.values())
    stop_ids = np.full(MAX_STOP_IDS, -1, np.int32)
    stop_ids[: len(request.stop_ids)] = request.stop_ids
    counters = repr((request.seed, request.number, request.answer))
    return Rules(
        temperature=np.float32(sampling.temperature),
        top_k=np.int32(min(sampling.top_k, 2**31 - 1)),
        top_p=np.float32(sampling.top_p),
        min_p=np.float32(sampling.min_p),
        repetition_penalty=np.float32(sampling.repetition_penalty),
        presence_penalty=np.float32(sampling.presence_penalty),
        frequency_penalty=np.float32(sampling.frequency_penalty),
        bias_ids=bias_ids,
        biases=biases,
        biased=np.bool_(bool(given)),
        constrained=np.bool_(request.constraint is not None),
        top_logprobs=np.int32(-1 if request.top_logprobs is None else request.top_logprobs),
        stop_ids=stop_ids,
        max_new_tokens=np.int32(sampling.max_new_tokens),
        key=np.frombuffer(hashlib.blake2b(counters.encode(), digest_size=8).digest(), np.uint32),
    )


@jax.named_scope("choose")
def choose(
    logits: Float[Array, "B V"], rules: Rules, history: History, masks: UInt32[Array, "B words"], index: Int[Array, "B"]
) -> Choice:
    """The next token of each row.

    Args:
        masks: the tokens that constrained rows may take, see `Constraint.allowed`; other rows' are not looked at.
        index: the token's place in its answer. The random choice depends on it and the row's seeds alone.
    """
    shaped = _shaped(logits, rules, history, masks)
    largest = jnp.max(shaped, axis=-1)
    valid = jnp.isfinite(largest) & ~jnp.isnan(shaped).any(axis=-1)
    likeliest = jnp.argmax(shaped, axis=-1).astype(jnp.int32)
    random = rules.temperature > 0

    def drawn() -> tuple[Array, Array]:
        ids, logprob = _drawn(shaped - largest[:, None], rules, index)
        return jnp.where(random, ids, likeliest), jnp.where(random, logprob, 0.0)

    ids, sampled_logprob = jax.lax.cond(random.any(), drawn, lambda: (likeliest, jnp.zeros_like(largest)))
    logprob, top_ids, top_logprobs = _logprobs(logits, rules, ids)
    return Choice(ids, valid, logprob, sampled_logprob, top_ids, top_logprobs)


def _shaped(logits: Array, rules: Rules, history: History, masks: Array) -> Float[Array, "B V"]:
    """Logits after penalties, biases and constraints."""
    rows = jnp.arange(logits.shape[0])[:, None]

    def penalized(logits: Array) -> Array:
        place = jnp.arange(history.tokens.shape[1])[None]
        known = place < history.lengths[:, None]
        answered = known & (place >= history.prompt_lengths[:, None])
        seen = jnp.zeros(logits.shape, jnp.bool_).at[rows, history.tokens].max(known)
        counts = jnp.zeros(logits.shape, jnp.float32).at[rows, history.tokens].add(answered.astype(jnp.float32))
        repetition = rules.repetition_penalty[:, None]
        repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
        taken = rules.frequency_penalty[:, None] * counts + rules.presence_penalty[:, None] * (counts > 0)
        return jnp.where(seen, repeated, logits) - taken

    def biased(logits: Array) -> Array:
        return logits.at[rows, rules.bias_ids].add(rules.biases, mode="drop")

    def constrained(logits: Array) -> Array:
        bits = (masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]) & 1
        allowed = bits.reshape(logits.shape[0], -1)[:, : logits.shape[1]] == 1
        return jnp.where(rules.constrained[:, None] & ~allowed, -jnp.inf, logits)

    penalties = (rules.repetition_penalty != 1) | (rules.presence_penalty != 0) | (rules.frequency_penalty != 0)
    for wanted, change in ((penalties, penalized), (rules.biased, biased), (rules.constrained, constrained)):
        logits = jax.lax.cond(wanted.any(), change, lambda logits: logits, logits)
    return logits


def _drawn(shifted: Float[Array, "B V"], rules: Rules, index: Int[Array, "B"]) -> tuple[Array, Array]:
    """Token and its log-probability in the filtered distribution. `shifted`: logits less their largest."""
    scaled = shifted / jnp.where(rules.temperature > 0, rules.temperature, 1.0)[:, None]
    scaled = jax.lax.cond(_filters(rules).any(), lambda scaled: filtered(scaled, rules), lambda scaled: scaled, scaled)
    likelihood = jnp.exp(scaled)
    ids = _draw(likelihood, rules, index)
    chosen = jnp.take_along_axis(scaled, ids[:, None], axis=1)[:, 0]
    return ids, chosen - jnp.log(likelihood.sum(axis=-1))


def _filters(rules: Rules) -> Bool[Array, "B"]:
    filtering = (rules.top_k > 0) | (rules.top_p < 1) | (rules.min_p > 0)
    return filtering & (rules.temperature > 0)


def filtered(scaled: Float[Array, "B V"], rules: Rules) -> Float[Array, "B V"]:
    """Logits with the tokens outside of top-k, top-p and min-p at minus infinity; of equals all stay or none.

    Top-p keeps the most likely tokens up to and including the one with which their probability reaches `top_p`
    (Holtzman et al. 2019, arXiv:1904.09751, section 3.1); it sees what top-k left. Min-p keeps what is at least
    `min_p` times as likely as the most likely token (Nguyen et al. 2024, arXiv:2407.01082, section 3).

    Args:
        scaled: divided by the temperature; the largest of each row is 0.
    """
    near = jax.lax.top_k(scaled, min(NEAR, scaled.shape[-1]))[0] if platform() == "cpu" else None

    def narrowed(bound: Array, by_mass: Array) -> tuple[Array, None]:
        def weighed(values: Array) -> tuple[Array, Array]:
            cost = _cost(values)
            return cost, jnp.where(cost <= bound[:, None], jnp.where(by_mass, jnp.exp(values), 1.0), 0.0)

        everything = weighed(scaled)
        mass = jnp.where(rules.top_p < 1, rules.top_p * everything[1].sum(axis=-1), jnp.inf)
        limit = jnp.where(by_mass, mass, jnp.where(rules.top_k > 0, rules.top_k, jnp.inf))
        found = _threshold(everything, None if near is None else weighed(near), limit)
        return jnp.minimum(bound, found), None

    bound = jax.lax.scan(narrowed, jnp.full(len(scaled), _MOST, jnp.int32), jnp.array([False, True]))[0]
    kept = (_cost(scaled) <= bound[:, None]) & (scaled >= jnp.log(rules.min_p)[:, None])
    return jnp.where(kept, scaled, -jnp.inf)


_MOST = 0x7F800000  # the bits of infinity


def _cost(scaled: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """A number that is less the likelier a token is: bits of floating-point numbers that are not negative are ordered
    as they are."""
    return jax.lax.bitcast_convert_type(jnp.abs(scaled), jnp.int32)


def _threshold(
    everything: tuple[Array, Array], near: tuple[Array, Array] | None, limit: Float[Array, "B"]
) -> Int[Array, "B"]:
    """The largest m such that the weights of all costs below m sum up to less than the limit (above 0, or infinite).

    Args:
        everything: costs and weights of all tokens.
        near: those of some, of which no other has less cost, in their order; there it is looked for first.
    """
    if near is None:
        return _halved(*everything, limit)
    found, (cost, weights) = _halved(*near, limit), near
    is_there = jnp.isinf(limit) | (jnp.where(cost < cost[:, -1:], weights, 0.0).sum(axis=-1) >= limit)
    return jax.lax.cond(is_there.all(), lambda: found, lambda: jnp.where(is_there, found, _halved(*everything, limit)))


def _halved(cost: Int[Array, "B V"], weights: Float[Array, "B V"], limit: Float[Array, "B"]) -> Int[Array, "B"]:
    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low + 1) // 2
        below = jnp.where(cost < middle[:, None], weights, 0.0).sum(axis=-1)
        return jnp.where(below < limit, middle, low), jnp.where(below < limit, high, middle - 1)

    most = jnp.full_like(limit, _MOST, jnp.int32)
    # Where no row is limited there is nothing to look for.
    bounds = jnp.where(jnp.isinf(limit), most, 0), most
    return jax.lax.while_loop(lambda bounds: (bounds[0] < bounds[1]).any(), halve, bounds)[0]


def _draw(likelihood: Float[Array, "B V"], rules: Rules, index: Int[Array, "B"]) -> Int[Array, "B"]:
    """A token of each row, in proportion to its likelihood: first which block of tokens, then which of the block. That
    takes twice the square root of the vocabulary of random numbers, instead of one for each token."""
    B, V = likelihood.shape
    size = math.isqrt(V - 1) + 1
    blocks = jnp.pad(likelihood, ((0, 0), (0, -V % size))).reshape(B, -1, size)

    def one(blocks: Array, key: Array, index: Array) -> Array:
        own = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), index)
        # The largest of log-likelihoods and Gumbel noise is distributed like the likelihoods (Gumbel 1954).
        of_block, of_token = jnp.split(jax.random.gumbel(own, (len(blocks) + size,)), [len(blocks)])
        block = jnp.argmax(jnp.log(blocks.sum(axis=-1)) + of_block)
        return block * size + jnp.argmax(jnp.log(blocks[block]) + of_token)

    return jax.vmap(one)(blocks, rules.key, index).astype(jnp.int32)


def _logprobs(logits: Array, rules: Rules, ids: Array) -> tuple[Array, Array, Array]:
    """Log-probability of the chosen tokens, and the most likely tokens with theirs, in the raw distribution."""
    B, V = logits.shape
    count = min(MAX_TOP_LOGPROBS, V)

    def wanted() -> tuple[Array, Array, Array]:
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        chosen = jnp.take_along_axis(logits, ids[:, None], axis=1)
        best, best_ids = jax.lax.cond(
            (rules.top_logprobs > 0).any(),
            lambda: tuple(jax.lax.top_k(logits, count)),
            lambda: (jnp.zeros((B, count)), jnp.zeros((B, count), jnp.int32)),
        )
        return (chosen - total)[:, 0], best_ids, best - total

    nothing = (jnp.zeros(B), jnp.zeros((B, count), jnp.int32), jnp.zeros((B, count)))
    return jax.lax.cond((rules.top_logprobs >= 0).any(), wanted, lambda: nothing)
