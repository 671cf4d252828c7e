"""What a request to `/v1/responses` says, in the terms of chats."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.core.json_files import shown
from llama_jax.inference.server.answering.generation import GENERATION, SAMPLING
from llama_jax.inference.server.messages import called, parts_of
from llama_jax.inference.server.protocol.errors import wrong
from llama_jax.inference.server.protocol.fields import (
    IGNORED,
    Field,
    Fields,
    any_object,
    either,
    list_of,
    object_of,
    one_of,
    read,
    refused,
    table,
    text,
    whole,
)
from llama_jax.inference.server.shapes.fields import ANY_OBJECT, CHOICES, FUNCTION, TOOLS, name, tools_of
from llama_jax.inference.server.shapes.shape import Wanted

LOGPROBS = "message.output_text.logprobs"
"""What `include` names to have log-probabilities."""

_ITEM: Fields = {"type": IGNORED, "id": IGNORED, "status": IGNORED}
_MESSAGE: Fields = {
    **_ITEM,
    "role": Field(one_of("user", "assistant", "system", "developer"), is_needed=True),
    "content": parts_of("input_text", "output_text", "refusal")._replace(is_needed=True),
    "phase": IGNORED,
}
_CALL: Fields = {
    **_ITEM,
    "call_id": Field(text(256, 1), is_needed=True),
    "name": Field(name, is_needed=True),
    "arguments": Field(text(), is_needed=True),
    "parsed_arguments": IGNORED,
}
_RESULT: Fields = {
    **_ITEM,
    "call_id": Field(text(256, 1), is_needed=True),
    "output": parts_of("input_text")._replace(is_needed=True),
    "name": Field(text(64)),
}
_ITEMS = {"message": _MESSAGE, "function_call": _CALL, "function_call_output": _RESULT}


def _item(value: Any, path: str) -> dict[str, Any]:
    kind = any_object(value, path).get("type") or "message"
    if not isinstance(kind, str) or kind not in _ITEMS:
        raise wrong(f"{path}.type", f"is {shown(kind)}, {', '.join(_ITEMS)} are what is served")
    return {**read(_ITEMS[kind], value, path), "type": kind}


_FORMAT: Fields = {
    "type": Field(one_of("text", "json_object", "json_schema"), is_needed=True),
    "name": Field(name),
    "description": Field(text()),
    "schema": Field(any_object),
    "strict": IGNORED,
}
_TOOL: Fields = {
    "type": Field(one_of("function"), is_needed=True),
    **FUNCTION,
    "output_schema": IGNORED,
    "allowed_callers": IGNORED,
    "defer_loading": refused("functions are told from the beginning", False),
}
_CHOICE: Fields = {"type": Field(one_of("function"), is_needed=True), "name": Field(name, is_needed=True)}
_NOT_KEPT = "responses are not kept"
RESPONSE: Fields = {
    **SAMPLING,
    **{field: GENERATION[field] for field in ("model", "seed", "stop", "stop_token_ids", "logit_bias", "stream")},
    "input": Field(either("a string or a list of items", {str: text(), list: list_of(_item, 2048, 1)}), is_needed=True),
    "instructions": Field(text()),
    "max_output_tokens": Field(whole(1, 2**31 - 1)),
    "include": Field(list_of(one_of(LOGPROBS, "reasoning.encrypted_content"), 16), ()),
    "top_logprobs": Field(whole(0, 20)),
    "text": Field(object_of({"format": Field(object_of(_FORMAT)), "verbosity": IGNORED}), {}),
    "tools": Field(list_of(object_of(_TOOL), 128), ()),
    "tool_choice": Field(either("none, auto, required or an object", {str: CHOICES, dict: object_of(_CHOICE)})),
    "parallel_tool_calls": TOOLS["parallel_tool_calls"],
    "metadata": Field(table(lambda key, path: key, text(512), 16), {}),
    "stream_options": Field(object_of({"include_obfuscation": IGNORED})),
    "previous_response_id": refused(_NOT_KEPT),
    "conversation": refused(_NOT_KEPT),
    "background": refused(_NOT_KEPT, False),
    "prompt": refused("there are no stored prompts"),
    "truncation": refused("prompts are not cut", "disabled"),
    "context_management": refused("prompts are not cut", []),
    # What changes nothing here.
    **dict.fromkeys(
        (
            "user",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "moderation",
            "reasoning",
            "max_tool_calls",
        ),
        IGNORED,
    ),
}


def messages_of(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation, as templates expect it.

    Raises:
        ApiError: the arguments of a call are not JSON.
    """
    instructions, said = asked["instructions"], asked["input"]
    messages = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(said, str):
        return [*messages, {"role": "user", "content": said}]
    names: dict[str, str] = {}
    for number, item in enumerate(said):
        if item["type"] == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append({"role": role, "content": item["content"]})
        elif item["type"] == "function_call":
            call = called(item["call_id"], item, f"input[{number}]", names)
            # Calls belong to the message before them, where that is the assistant's.
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            known = names.get(item["call_id"], item["name"])
            result = {"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]}
            messages.append(result | ({"name": known} if known else {}))
    return messages


def wanted_of(asked: Mapping[str, Any]) -> Wanted:
    """What the answer must look like.

    Raises:
        ApiError: fields contradict one another.
    """
    form: Any = asked["text"].get("format") or {"type": "text"}
    schema: Any = None if form["type"] == "text" else ANY_OBJECT
    if form["type"] == "json_schema":
        for field in ("name", "schema"):
            if form[field] is None:
                raise wrong(f"text.format.{field}", "is missing", "missing_required_parameter")
        schema = form["schema"]
    choice: Any = asked["tool_choice"] or "auto"
    only = choice["name"] if isinstance(choice, dict) else None
    call: Any = "required" if only else choice
    tools: Sequence[Mapping[str, Any]] = asked["tools"]
    field = "text.format.schema"
    return Wanted(schema, field, tools_of(tools, call, only), call, only, asked["parallel_tool_calls"])
