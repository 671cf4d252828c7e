"""`/v1/completions`."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from llama_jax.inference.completion import encode_prompt
from llama_jax.inference.server.answering.answers import Answers
from llama_jax.inference.server.answering.generation import GENERATION, Limits, generation_of
from llama_jax.inference.server.answering.logprobs import completion_logprobs
from llama_jax.inference.server.protocol.errors import wrong
from llama_jax.inference.server.protocol.fields import Field, Fields, either, flag, list_of, read, refused, text, whole
from llama_jax.inference.server.protocol.replies import Events, Reply
from llama_jax.inference.server.service import Call, Service

_TOKEN = whole(0, 2**31 - 1)
_PROMPT = either(
    "a string, a list of strings, a list of tokens or a list of such lists",
    {
        str: text(),
        list: list_of(
            either(
                "a string, a token or a list of tokens",
                {
                    str: text(),
                    int: _TOKEN,
                    list: list_of(_TOKEN, 2**20, 1),
                },
            ),
            2**20,
            1,
        ),
    },
)
COMPLETION: Fields = {
    **GENERATION,
    "prompt": Field(_PROMPT, is_needed=True),
    "max_tokens": Field(whole(1, 2**31 - 1), 16),
    "logprobs": Field(whole(0, 20)),
    "add_special_tokens": Field(flag, True),
    "echo": refused("the answer is what is new", False),
    "suffix": refused("text is only continued", ""),
    "response_format": refused("only chats take it", {"type": "text"}),
}


async def complete(call: Call) -> Reply | Events:
    """Answer a request to `/v1/completions`."""
    asked = read(COMPLETION, call.body)
    if asked["stream_options"] and not asked["stream"]:
        raise wrong("stream_options", "needs stream to be true")
    service = call.service
    how = dataclasses.replace(
        generation_of(asked, service.tokenizer, service.defaults, service.limits),
        adapter=service.adapter(asked["model"]),
        new_tokens=asked["max_tokens"],
        top_logprobs=asked["logprobs"],
    )
    prompts = await asyncio.to_thread(_prompts, asked, service)
    answers = await call.answers(prompts, how)
    reply = _Completion(call, asked, answers, len(prompts) * how.answers)
    return Events(reply.chunks()) if asked["stream"] else Reply(await reply.whole())


def _prompts(asked: Mapping[str, Any], service: Service) -> list[list[int]]:
    prompt = asked["prompt"]
    if isinstance(prompt, str):
        prompts = [prompt]
    else:
        kinds = {type(part) for part in prompt}
        if len(kinds) > 1:
            raise wrong("prompt", "mixes strings, tokens and lists of tokens; all parts must be of one kind")
        prompts = [prompt] if kinds == {int} else prompt
    if len(prompts) > service.limits.answers:
        raise wrong("prompt", f"has {len(prompts)} prompts, at most {service.limits.answers} are allowed")
    return [_ids(each, asked["add_special_tokens"], service) for each in prompts]


def _ids(prompt: str | Sequence[int], special: bool, service: Service) -> list[int]:
    if isinstance(prompt, str):
        # What a prompt names is read as such, like in `generate`: it is wholly the caller's.
        return encode_prompt(service.tokenizer, prompt) if special else service.tokenizer.encode(prompt, special=True)
    check_tokens(prompt, service.limits)
    return list(prompt)


def check_tokens(tokens: Sequence[int], limits: Limits, field: str = "prompt") -> None:
    """Refuse tokens that the vocabulary does not have."""
    if tokens and max(tokens) >= limits.vocabulary:
        raise wrong(field, f"token {max(tokens)} is not below {limits.vocabulary}, the size of the vocabulary")


class _Completion:
    """The answers as OpenAI's objects."""

    def __init__(self, call: Call, asked: Mapping[str, Any], answers: Answers, number: int) -> None:
        self._asked, self._answers, self._number = asked, answers, number
        self._names = call.service.token_names
        self._head = {
            "id": f"cmpl-{call.id}",
            "object": "text_completion",
            "created": call.time,
            "model": asked["model"] or call.service.default_model,
        }

    async def whole(self) -> dict[str, Any]:
        """Everything at once."""
        choices: list[dict[str, Any]] = [
            {"index": index, "text": "", "logprobs": None} for index in range(self._number)
        ]
        async for piece in self._answers:
            choice = choices[piece.answer]
            if (logprobs := self._logprobs(piece.tokens, len(choice["text"]))) is not None:
                so_far = choice["logprobs"] or {name: [] for name in logprobs}
                choice["logprobs"] = {name: so_far[name] + more for name, more in logprobs.items()}
            choice["text"] += piece.text
            choice["finish_reason"] = piece.finish
        return {**self._head, "choices": choices, "usage": self._answers.usage}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Piece by piece."""
        with_usage = self._asked["stream_options"].get("include_usage")
        usage = {"usage": None} if with_usage else {}
        written = [0] * self._number
        async for piece in self._answers:
            logprobs = self._logprobs(piece.tokens, written[piece.answer])
            written[piece.answer] += len(piece.text)
            if piece.text or logprobs or piece.finish:
                choice = {
                    "index": piece.answer,
                    "text": piece.text,
                    "logprobs": logprobs,
                    "finish_reason": piece.finish,
                }
                yield {**self._head, "choices": [choice], **usage}
        if with_usage:
            yield {**self._head, "choices": [], "usage": self._answers.usage}

    def _logprobs(self, tokens: Sequence[Any], start: int) -> dict[str, Any] | None:
        if self._asked["logprobs"] is None:
            return None
        return completion_logprobs(self._names, tokens, start)
