"""The route `/v1/responses`."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from llama_jax.inference.server.answering.answers import Answers
from llama_jax.inference.server.answering.generation import Generation, generation_of
from llama_jax.inference.server.answering.logprobs import chat_logprobs
from llama_jax.inference.server.messages import rendered_ids
from llama_jax.inference.server.protocol.errors import ApiError, wrong
from llama_jax.inference.server.protocol.fields import read
from llama_jax.inference.server.protocol.replies import Events, Reply
from llama_jax.inference.server.responses.events import Event, Response
from llama_jax.inference.server.responses.request import LOGPROBS, RESPONSE, messages_of, wanted_of
from llama_jax.inference.server.service import Call
from llama_jax.inference.server.shapes.shape import Reader


async def respond(call: Call) -> Reply | Events:
    """Answer a request to `/v1/responses`."""
    asked = read(RESPONSE, call.body)
    with_logprobs = LOGPROBS in asked["include"]
    if asked["top_logprobs"] and not with_logprobs:
        raise wrong("top_logprobs", f"needs include to hold {LOGPROBS}")
    service, wanted = call.service, wanted_of(asked)
    adapter = service.adapter(asked["model"])
    shape = await asyncio.to_thread(service.shapes.shape, wanted)
    how = dataclasses.replace(
        generation_of(asked, service.tokenizer, service.defaults, service.limits),
        adapter=adapter,
        new_tokens=asked["max_output_tokens"],
        new_tokens_field="max_output_tokens",
        prompt_field="input",
        top_logprobs=(asked["top_logprobs"] or 0) if with_logprobs else None,
        make_constraint=shape.make_constraint,
    )
    prompt = await asyncio.to_thread(rendered_ids, messages_of(asked), wanted, service, "input")
    answers = await call.answers([prompt], how)
    response = Response(_head(call, asked, how))
    events = _events(call, response, answers, shape.make_reader(), with_logprobs)
    if asked["stream"]:
        return Events(events, named=True)
    return Reply([event async for event in events][-1]["response"])


async def _events(
    call: Call, response: Response, answers: Answers, reader: Reader, with_logprobs: bool
) -> AsyncGenerator[Event, None]:
    for event in response.begun():
        yield event
    status = "completed"
    try:
        async for piece in answers:
            deltas = reader.push(piece.text)
            if piece.finish is not None:
                rest, reason = reader.finish(piece.finish)
                deltas, status = deltas + rest, "incomplete" if reason == "length" else "completed"
            found = chat_logprobs(call.service.token_names, piece.tokens)["content"] if with_logprobs else ()
            for event in response.extended(deltas, found):
                yield event
    except ApiError as error:
        failed = {"code": "server_error", "message": error.message}
        for event in response.ended("failed", _usage(answers), failed):
            yield event
        raise
    for event in response.ended(status, _usage(answers)):
        yield event


def _usage(answers: Answers) -> dict[str, Any]:
    return {
        "input_tokens": answers.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answers.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answers.prompt_tokens + answers.completion_tokens,
    }


def _head(call: Call, asked: Mapping[str, Any], how: Generation) -> dict[str, Any]:
    """What was asked for, as responses tell it."""
    body = call.body
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.time,
        "model": asked["model"] or call.service.default_model,
        "instructions": asked["instructions"],
        "max_output_tokens": asked["max_output_tokens"],
        "temperature": how.sampling["temperature"],
        "top_p": how.sampling["top_p"],
        "top_logprobs": asked["top_logprobs"] or 0,
        "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
        "tools": body.get("tools") or [],
        "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": asked["parallel_tool_calls"],
        "metadata": asked["metadata"],
        "previous_response_id": None,
        "background": False,
        "truncation": "disabled",
        "store": False,
    }
