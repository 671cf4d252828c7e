"""The routes about the model and the server: models, tokens, health, metrics, the page."""

import asyncio
from typing import Any

from llama_jax.core.errors import UserError
from llama_jax.inference.completion import encode_prompt
from llama_jax.inference.server import metrics
from llama_jax.inference.server.messages import CONVERSATION, conversation_ids
from llama_jax.inference.server.page import PAGE, PAGE_HEADERS
from llama_jax.inference.server.protocol.errors import of_user_error, wrong
from llama_jax.inference.server.protocol.fields import Field, Fields, flag, list_of, read, text, whole
from llama_jax.inference.server.protocol.replies import Reply
from llama_jax.inference.server.routes.completions import check_tokens
from llama_jax.inference.server.service import Call, Service

TOKENIZE: Fields = {
    **{name: field._replace(is_needed=False) for name, field in CONVERSATION.items()},
    "model": Field(text(512)),
    "prompt": Field(text()),
    "add_special_tokens": Field(flag, True),
    "return_token_strs": Field(flag, False),
}
DETOKENIZE: Fields = {
    "model": Field(text(512)),
    "tokens": Field(list_of(whole(0, 2**31 - 1), 2**20), is_needed=True),
}


async def models(call: Call) -> Reply:
    """`/v1/models`."""
    return Reply({"object": "list", "data": [_model(name, call.service) for name in call.service.models]})


async def model(call: Call) -> Reply:
    """`/v1/models/{name}`."""
    call.service.adapter(call.path["name"])
    return Reply(_model(call.path["name"], call.service))


def _model(name: str, service: Service) -> dict[str, Any]:
    known = {"id": name, "object": "model", "created": service.created, "owned_by": "llama_jax"}
    chats = service.tokenizer.chat_template is not None
    return {**known, "max_model_len": service.limits.length, "chat": chats}


async def tokenize(call: Call) -> Reply:
    """`/tokenize`: of a prompt, or of messages."""
    asked = read(TOKENIZE, call.body)
    service = call.service
    service.adapter(asked["model"])
    if (asked["prompt"] is None) == (asked["messages"] is None):
        raise wrong("prompt", "give either this or messages")

    def ids() -> list[int]:
        if asked["prompt"] is None:
            return conversation_ids(asked, service)
        try:
            if asked["add_special_tokens"]:
                return encode_prompt(service.tokenizer, asked["prompt"])
            return service.tokenizer.encode(asked["prompt"], special=True)
        except UserError as error:
            raise of_user_error(error) from None

    tokens = await asyncio.to_thread(ids)
    strings = (
        {"token_strs": [service.tokenizer.decode([token]) for token in tokens]} if asked["return_token_strs"] else {}
    )
    return Reply({"count": len(tokens), "max_model_len": service.limits.length, "tokens": tokens, **strings})


async def detokenize(call: Call) -> Reply:
    """`/detokenize`."""
    asked = read(DETOKENIZE, call.body)
    call.service.adapter(asked["model"])
    check_tokens(asked["tokens"], call.service.limits, "tokens")
    return Reply({"prompt": await asyncio.to_thread(call.service.tokenizer.decode, asked["tokens"])})


async def health(call: Call) -> Reply:
    """`/health`: 200 where requests are answered."""
    service = call.service
    status = "draining" if service.draining else "failed" if service.worker.failure else "ok"
    return Reply({"status": status}, 200 if status == "ok" else 503)


async def metrics_text(call: Call) -> Reply:
    """`/metrics`."""
    return Reply(call.service.metrics.text().encode(), kind=metrics.CONTENT_TYPE)


async def page(call: Call) -> Reply:
    """`/`: the page to chat with the model."""
    return Reply(PAGE, kind="text/html; charset=utf-8", headers=PAGE_HEADERS)
