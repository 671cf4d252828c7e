"""`/v1/chat/completions`."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from llama_jax.inference.server.answering.answers import Answers
from llama_jax.inference.server.answering.generation import GENERATION, generation_of
from llama_jax.inference.server.answering.logprobs import chat_logprobs
from llama_jax.inference.server.messages import CONVERSATION, conversation_ids
from llama_jax.inference.server.protocol.errors import wrong
from llama_jax.inference.server.protocol.fields import IGNORED, Field, Fields, flag, read, refused, whole
from llama_jax.inference.server.protocol.replies import Events, Reply
from llama_jax.inference.server.service import Call
from llama_jax.inference.server.shapes.fields import SHAPE, wanted_of
from llama_jax.inference.server.shapes.shape import Reader

_MOST_TOKENS = whole(1, 2**31 - 1)
CHAT: Fields = {
    **GENERATION,
    **CONVERSATION,
    **SHAPE,
    "max_completion_tokens": Field(_MOST_TOKENS),
    "max_tokens": Field(_MOST_TOKENS),
    "logprobs": Field(flag, False),
    "top_logprobs": Field(whole(0, 20)),
    "modalities": refused("the answer is text", ["text"]),
    "audio": refused("the answer is text"),
    "web_search_options": refused("nothing is fetched from anywhere"),
    "prediction": IGNORED,
    "reasoning_effort": IGNORED,
    "verbosity": IGNORED,
    "echo": refused("the answer is what is new", False),
}


async def chat(call: Call) -> Reply | Events:
    """Answer a request to `/v1/chat/completions`."""
    asked = read(CHAT, call.body)
    if asked["top_logprobs"] is not None and not asked["logprobs"]:
        raise wrong("top_logprobs", "needs logprobs to be true")
    if asked["stream_options"] and not asked["stream"]:
        raise wrong("stream_options", "needs stream to be true")
    service = call.service
    adapter = service.adapter(asked["model"])
    newer = asked["max_completion_tokens"] is not None
    shape = await asyncio.to_thread(service.shapes.shape, wanted_of(asked))
    if shape.make_constraint is not None and asked["ignore_eos"]:
        raise wrong("ignore_eos", "does not go with response_format or tools, which say where an answer ends")
    how = dataclasses.replace(
        generation_of(asked, service.tokenizer, service.defaults, service.limits),
        adapter=adapter,
        new_tokens=asked["max_completion_tokens"] if newer else asked["max_tokens"],
        new_tokens_field="max_completion_tokens" if newer else "max_tokens",
        prompt_field="messages",
        top_logprobs=(asked["top_logprobs"] or 0) if asked["logprobs"] else None,
        make_constraint=shape.make_constraint,
    )
    prompt = await asyncio.to_thread(conversation_ids, asked, service)
    answers = await call.answers([prompt], how)
    readers = [shape.make_reader() for _ in range(how.answers)]
    reply = _Chat(call, asked, answers, readers)
    return Events(reply.chunks()) if asked["stream"] else Reply(await reply.whole())


class _Chat:
    """The answers as OpenAI's objects."""

    def __init__(self, call: Call, asked: Mapping[str, Any], answers: Answers, readers: list[Reader]) -> None:
        self._asked, self._answers, self._readers = asked, answers, readers
        self._names = call.service.token_names
        self._head = {
            "id": f"chatcmpl-{call.id}",
            "created": call.time,
            "model": asked["model"] or call.service.default_model,
        }

    async def whole(self) -> dict[str, Any]:
        """Everything at once."""
        choices: list[dict[str, Any]] = [
            {"index": index, "message": {"role": "assistant", "content": None, "refusal": None}, "logprobs": None}
            for index in range(len(self._readers))
        ]
        async for index, deltas, logprobs, finish in self._deltas():
            choice = choices[index]
            for delta in deltas:
                _extend(choice["message"], delta)
            if logprobs is not None:
                so_far = choice["logprobs"] or {"content": [], "refusal": None}
                choice["logprobs"] = so_far | {"content": so_far["content"] + logprobs["content"]}
            if finish is not None:
                choice["finish_reason"] = finish
                if choice["message"]["content"] is None and "tool_calls" not in choice["message"]:
                    choice["message"]["content"] = ""
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._answers.usage}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Piece by piece."""
        with_usage = self._asked["stream_options"].get("include_usage")
        usage = {"usage": None} if with_usage else {}

        def chunk(
            index: int, delta: Mapping[str, Any], logprobs: Any = None, finish: str | None = None
        ) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

        for index in range(len(self._readers)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, deltas, logprobs, finish in self._deltas():
            if logprobs is not None and not deltas:
                deltas = [{"content": ""}]
            for number, delta in enumerate(deltas):
                yield chunk(index, delta, logprobs if number == 0 else None)
            if finish is not None:
                yield chunk(index, {}, finish=finish)
        if with_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._answers.usage}

    async def _deltas(
        self,
    ) -> AsyncGenerator[tuple[int, list[dict[str, Any]], dict[str, Any] | None, str | None], None]:
        async for piece in self._answers:
            reader = self._readers[piece.answer]
            deltas, finish = reader.push(piece.text), piece.finish
            if piece.finish is not None:
                rest, finish = reader.finish(piece.finish)
                deltas = deltas + rest
            logprobs = chat_logprobs(self._names, piece.tokens) if self._asked["logprobs"] else None
            yield piece.answer, deltas, logprobs, finish


def _extend(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add what a delta says to the message: texts are put together, and tool calls by their index."""
    for name, value in delta.items():
        if name == "tool_calls":
            calls = message.setdefault(name, [])
            for each in value:
                if each["index"] == len(calls):
                    calls.append({"id": each["id"], "type": each["type"], "function": dict(each["function"])})
                else:
                    calls[each["index"]]["function"]["arguments"] += each["function"]["arguments"]
        else:
            message[name] = (message.get(name) or "") + value
