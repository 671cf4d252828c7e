"""How answers are to be generated: the fields that OpenAI's routes share, those that vLLM adds, and what they mean
to the engine."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_object, shown
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Constraint, Request
from llama_jax.inference.server.protocol.errors import of_user_error, wrong
from llama_jax.inference.server.protocol.fields import (
    IGNORED,
    Field,
    Fields,
    either,
    flag,
    list_of,
    number,
    object_of,
    refused,
    table,
    text,
    whole,
)

_TOKEN = whole(0, 2**31 - 1)
SAMPLING: Fields = {
    "temperature": Field(number(0.0, 2.0)),
    "top_p": Field(number(0.0, 1.0, above=True)),
    "top_k": Field(whole(-1, 2**31 - 1)),
    "min_p": Field(number(0.0, 1.0)),
    "repetition_penalty": Field(number(0.0, 10.0, above=True)),
    "presence_penalty": Field(number(-2.0, 2.0)),
    "frequency_penalty": Field(number(-2.0, 2.0)),
}
"""Also in a model's generation_config.json, but for the last two."""

_NO_BEAMS = "there is no beam search"
_ONE_OUTPUT = "the answer is its text"
_ONE_TEMPLATE = "a request cannot change the model's chat template"
GENERATION: Fields = {
    **SAMPLING,
    "model": Field(text(512)),
    "n": Field(whole(1, 128), 1),
    "seed": Field(whole(-(2**63), 2**63 - 1)),
    "stop": Field(either("a string or a list of strings", {str: text(256, 1), list: list_of(text(256, 1), 16)})),
    "stop_token_ids": Field(list_of(_TOKEN, 16), ()),
    "ignore_eos": Field(flag, False),
    "logit_bias": Field(table(lambda name, path: _token_id(name, path), number(-100.0, 100.0), 1024), {}),
    "stream": Field(flag, False),
    "stream_options": Field(object_of({"include_usage": Field(flag, False), "include_obfuscation": IGNORED}), {}),
    # What changes nothing here.
    **dict.fromkeys(
        (
            "user",
            "store",
            "metadata",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "priority",
            "cache_salt",
            "request_id",
            "stream_interval",
            "spaces_between_special_tokens",
            "moderation",
        ),
        IGNORED,
    ),
    # What would change the answer.
    "min_tokens": refused("an answer has no least length", 0),
    "include_stop_str_in_output": refused("an answer ends before the stop string", False),
    "skip_special_tokens": refused("control tokens have no text", True),
    "bad_words": refused("only logit_bias keeps words out", []),
    "allowed_token_ids": refused("only logit_bias and response_format choose tokens", []),
    "truncate_prompt_tokens": refused("prompts are not cut"),
    "prompt_logprobs": refused("log-probabilities are those of the answer"),
    "return_token_ids": refused(_ONE_OUTPUT, False),
    "return_tokens_as_token_ids": refused(_ONE_OUTPUT, False),
    "logits_processors": refused("no code is taken from requests", []),
    "use_beam_search": refused(_NO_BEAMS, False),
    "length_penalty": refused(_NO_BEAMS, 1, 1.0),
    "early_stopping": refused(_NO_BEAMS, False),
    "best_of": refused("each answer is given, none is left out", 1),
    "structured_outputs": refused("response_format is what constrains an answer"),
    "chat_template": refused(_ONE_TEMPLATE),
    "chat_template_kwargs": refused(_ONE_TEMPLATE, {}),
}
"""Fields of every route that generates."""


def _token_id(name: Any, path: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) < 11):
        raise wrong(path, f"has the key {shown(name)}, the id of a token is expected")
    return int(name)


@dataclass(frozen=True)
class Limits:
    """What the model and the settings allow."""

    vocabulary: int
    length: int
    """Tokens of a prompt and its answer together."""
    prompt_tokens: int
    new_tokens: int
    answers: int


@dataclass(frozen=True)
class Generation:
    """How to answer the prompts of a request. Made by `generation_of`."""

    sampling: Mapping[str, Any]
    """Fields of `SamplingConfig`, but for the number of tokens."""
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    """Strings that end an answer."""
    answers: int
    """To each prompt."""
    seed: int
    logit_bias: Mapping[int, float]
    adapter: int | None = None
    new_tokens: int | None = None
    """At the most; None: what fits."""
    new_tokens_field: str = "max_tokens"
    """What the request calls it."""
    prompt_field: str = "prompt"
    """What the request calls what was said."""
    top_logprobs: int | None = None
    """See `Request`."""
    make_constraint: Callable[[], Constraint] | None = field(default=None, compare=False)
    """Makes the constraint of an answer, each its own."""


def generation_of(
    asked: Mapping[str, Any], tokenizer: Tokenizer, defaults: Mapping[str, Any], limits: Limits
) -> Generation:
    """What the fields of `GENERATION` say.

    Args:
        asked: as `read` gives them; fields that a route does not have may be missing.
        defaults: of sampling, those of the model (`model_defaults`).

    Raises:
        ApiError: a token is not in the vocabulary.
    """
    sampling = {name: defaults[name] if asked.get(name) is None else asked[name] for name in SAMPLING}
    sampling["top_k"] = max(0, sampling["top_k"])  # -1 is vLLM's word for all
    extra, bias = tuple(asked.get("stop_token_ids") or ()), asked.get("logit_bias") or {}
    for name, tokens in (("stop_token_ids", extra), ("logit_bias", bias)):
        if tokens and max(tokens) >= limits.vocabulary:
            raise wrong(name, f"token {max(tokens)} is not below {limits.vocabulary}, the size of the vocabulary")
    stops, seed = asked.get("stop") or (), asked.get("seed")
    return Generation(
        sampling=sampling,
        stop_ids=(*(() if asked.get("ignore_eos") else tokenizer.stop_ids), *extra),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        answers=asked.get("n") or 1,
        seed=secrets.randbits(31) if seed is None else seed % 2**31,
        logit_bias=bias,
    )


def requests_of(prompts: Sequence[Sequence[int]], how: Generation, limits: Limits) -> list[Request]:
    """The engine's requests: all answers to the first prompt, then those to the second.

    Raises:
        ApiError: there are too many answers, or a prompt is empty or does not fit with what it asks for.
    """
    if len(prompts) * how.answers > limits.answers:
        asked = f"{how.answers} answers to {len(prompts)} prompts" if len(prompts) > 1 else f"{how.answers} answers"
        raise wrong("n", f"{asked} are more than {limits.answers}, the most that a request may have")
    requests = []
    for number_, prompt in enumerate(prompts):
        new_tokens = _new_tokens(len(prompt), how, limits)
        try:
            sampling = SamplingConfig(max_new_tokens=new_tokens, **how.sampling)
        except UserError as error:
            raise of_user_error(error) from None
        requests += [
            Request(
                prompt=prompt,
                sampling=sampling,
                stop_ids=how.stop_ids,
                seed=how.seed,
                number=number_,
                answer=answer,
                adapter=how.adapter,
                top_logprobs=how.top_logprobs,
                logit_bias=how.logit_bias,
                constraint=how.make_constraint() if how.make_constraint else None,
            )
            for answer in range(how.answers)
        ]
    return requests


def _new_tokens(prompt: int, how: Generation, limits: Limits) -> int:
    if prompt == 0:
        raise wrong("prompt", "has no token; begin with the beginning-of-sequence token")
    if prompt > limits.prompt_tokens:
        problem = f"a prompt of {prompt} tokens is longer than {limits.prompt_tokens}, the most that is served"
        raise wrong(how.prompt_field, problem, "context_length_exceeded")
    asked, field_ = how.new_tokens, how.new_tokens_field
    if asked is not None and prompt + asked > limits.length:
        problem = f"a prompt of {prompt} tokens and {asked} new ones exceed the {limits.length} tokens that fit"
        raise wrong(field_, problem, "context_length_exceeded")
    if asked is not None and asked > limits.new_tokens:
        raise wrong(field_, f"{asked} tokens are more than {limits.new_tokens}, the most that is served")
    if prompt >= limits.length:
        problem = f"a prompt of {prompt} tokens leaves no room in {limits.length}"
        raise wrong(how.prompt_field, problem, "context_length_exceeded")
    return min(limits.new_tokens, limits.length - prompt) if asked is None else asked


def model_defaults(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Sampling where a request does not say otherwise: the model's generation_config.json, else temperature 1 and no
    filter.

    Args:
        files: what travels with the weights.

    Raises:
        UserError: a field is out of bounds.
    """
    plain = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    file = "generation_config.json"
    said = json_object(files.get(file, b"{}"), file)
    found = {name: said[name] for name in plain if said.get(name) is not None}
    try:
        checked = {name: SAMPLING[name].check(value, name) for name, value in found.items()}
    except Exception as error:
        raise UserError(f"{file}: {error}") from None
    return plain | checked
