"""What an engine is asked, and what it gives: a request, what may narrow its tokens, and each token that comes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.inference.config import SamplingConfig

MAX_STOP_IDS = 32
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20


@runtime_checkable
class Constraint(Protocol):
    """What the tokens of one answer are held to. Made for each request, and used by the engine's thread alone."""

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, `uint32 [ceil(V / 32)]`: bit i of word w is token 32 w + i. The stop tokens
        are among them where the text may end."""
        ...

    def push(self, token: int) -> None:
        """Be told the token that came."""
        ...


@dataclass(frozen=True)
class Request:
    """One answer that is asked for."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    sampling: SamplingConfig
    """How tokens are chosen, and how many at the most."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer (kept in it)."""
    seed: int = 0
    """Of the random choices, which follow from it, `number`, `answer` and the index of the token alone."""
    number: int = 0
    """Tells prompts of one seed apart."""
    answer: int = 0
    """Tells answers to one prompt apart."""
    adapter: int | None = None
    """Number of the adapter, of a model that holds several; None: the base alone."""
    top_logprobs: int | None = None
    """Alternatives to give beside the log-probability of each token; None: no log-probabilities at all."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens, after penalties and before the temperature."""
    constraint: Constraint | None = None


class NewToken(NamedTuple):
    """A token of an answer."""

    handle: int
    """Whose it is: what `submit` gave."""
    id: int
    finish: Literal["stop", "length", "error"] | None
    """Why it is the last: a stop token, as many as were asked for, or logits that are not numbers (the id then means
    nothing); None: more will come."""
    logprob: float | None = None
    """Nats, of the raw distribution: the model's logits at temperature 1, without filters, penalties, biases and
    constraints."""
    sampled_logprob: float | None = None
    """Nats, of the distribution that the token was drawn from, in which all of these have had their say; 0 at
    temperature 0."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens of the raw distribution with their log-probabilities."""


def check_request(request: Request, vocab_size: int, length: int, adapters: int) -> None:
    """Refuse what can never be answered.

    Args:
        length: tokens of prompt and answer at the most.
        adapters: how many the model holds side by side.

    Raises:
        UserError: it does not fit, or a setting is out of range.
    """
    tokens, new_tokens, count = len(request.prompt), request.sampling.max_new_tokens, request.top_logprobs
    if not tokens:
        raise UserError("prompt: has no token; start it with the beginning-of-sequence token")
    if tokens + new_tokens > length:
        raise UserError(
            f"max_new_tokens: a prompt of {tokens} tokens and {new_tokens} new ones exceed the context of {length}"
        )
    for name, ids in (("prompt", request.prompt), ("stop_ids", request.stop_ids), ("logit_bias", request.logit_bias)):
        if unknown := [token for token in ids if not 0 <= token < vocab_size]:
            raise UserError(f"{name}: token {unknown[0]} is not one of the {vocab_size} of the vocabulary")
    if len(request.stop_ids) > MAX_STOP_IDS:
        raise UserError(f"stop_ids: {len(request.stop_ids)} tokens are more than {MAX_STOP_IDS}")
    if len(request.logit_bias) > MAX_BIASES:
        raise UserError(f"logit_bias: {len(request.logit_bias)} tokens are more than {MAX_BIASES}")
    if not np.isfinite(list(request.logit_bias.values())).all():
        raise UserError("logit_bias: holds a number that is not finite")
    if count is not None and not 0 <= count <= MAX_TOP_LOGPROBS:
        raise UserError(f"top_logprobs: {count} must lie between 0 and {MAX_TOP_LOGPROBS}")
    if request.adapter is not None and not 0 <= request.adapter < adapters:
        raise UserError(f"adapter: there is no number {request.adapter} among the {adapters} of the model")
