"""Conversations of a request as tokens, by the model's chat template."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import shown
from llama_jax.data.chat import encode_chat
from llama_jax.inference.server.protocol.body import parsed
from llama_jax.inference.server.protocol.errors import ApiError, wrong
from llama_jax.inference.server.protocol.fields import (
    IGNORED,
    Field,
    Fields,
    any_object,
    either,
    flag,
    list_of,
    object_of,
    one_of,
    read,
    refused,
    text,
)
from llama_jax.inference.server.shapes.fields import TOOLS, name, wanted_of
from llama_jax.inference.server.shapes.shape import Wanted

if TYPE_CHECKING:
    from llama_jax.inference.server.service import Service

_PART: Fields = {
    "type": Field(text(64), is_needed=True),
    "text": Field(text()),
    "refusal": Field(text()),
    # What the client adds to a part that it was given.
    **dict.fromkeys(("annotations", "logprobs", "parsed", "prompt_cache_breakpoint"), IGNORED),
}
_CALLED: Fields = {
    "name": Field(name, is_needed=True),
    "arguments": Field(text(), is_needed=True),
    "parsed_arguments": IGNORED,
}
_CALL: Fields = {
    "type": Field(one_of("function"), "function"),
    "id": Field(text(256), is_needed=True),
    "function": Field(object_of(_CALLED), is_needed=True),
    "index": IGNORED,
}


def parts_of(*kinds: str) -> Field:
    """The content of a message: a text, or a list of parts of these kinds, whose texts become lines of one."""

    def part(value: Any, path: str) -> str:
        kind = any_object(value, path).get("type")
        if isinstance(kind, str) and kind not in kinds:
            raise wrong(f"{path}.type", f"is {shown(kind)}; the model reads text, so {' or '.join(kinds)} is expected")
        found = read(_PART, value, path)
        field = "refusal" if kind == "refusal" else "text"
        if found[field] is None:
            raise wrong(f"{path}.{field}", "is missing", "missing_required_parameter")
        return found[field]

    each = list_of(part, 1024)
    return Field(
        either(
            "a string or a list of parts",
            {str: text(), list: lambda value, path: "\n".join(each(value, path))},
        )
    )


_MESSAGE: Fields = {
    "role": Field(one_of("system", "developer", "user", "assistant", "tool"), is_needed=True),
    "content": parts_of("text", "refusal"),
    "name": Field(text(64)),
    "reasoning_content": Field(text()),
    "tool_calls": Field(list_of(object_of(_CALL), 128)),
    "tool_call_id": Field(text(256)),
    # What the client adds to a message that it was given.
    "refusal": Field(text()),
    "annotations": IGNORED,
    "parsed": IGNORED,
    "audio": refused("the model reads text"),
    "function_call": refused("it was replaced by tool_calls"),
}
CONVERSATION: Fields = {
    "messages": Field(list_of(object_of(_MESSAGE), 2048, 1), is_needed=True),
    "add_generation_prompt": Field(flag),
    "continue_final_message": Field(flag, False),
    **TOOLS,
}
"""The fields of a chat request that say what was said, and what may be called."""


def conversation_ids(asked: Mapping[str, Any], service: "Service") -> list[int]:
    """The prompt of a conversation. Slow: renders the template in another process. Called in a thread.

    Args:
        asked: the fields of `CONVERSATION`, as `read` gives them.

    Raises:
        ApiError: the model has no template, or it refuses the messages.
    """
    goes_on = asked["continue_final_message"]
    if goes_on and asked["add_generation_prompt"]:
        raise wrong("continue_final_message", "does not go with add_generation_prompt, which begins another message")
    if goes_on and asked["messages"][-1]["role"] != "assistant":
        place = f"messages[{len(asked['messages']) - 1}].role"
        raise wrong(place, "is not assistant, so continue_final_message has nothing to continue")
    asks = not goes_on if asked["add_generation_prompt"] is None else asked["add_generation_prompt"]
    messages = _messages(asked["messages"])
    return rendered_ids(messages, wanted_of(asked), service, "messages", asks=asks, goes_on=goes_on)


def rendered_ids(
    messages: Sequence[Mapping[str, Any]],
    wanted: Wanted,
    service: "Service",
    field: str,
    *,
    asks: bool = True,
    goes_on: bool = False,
) -> list[int]:
    """Ids of messages as templates expect them.

    Args:
        wanted: says which functions the model is told of.
        field: of the request, for messages of errors.
        asks: end with what opens the assistant's answer.
        goes_on: end with the last message, which is to be continued.

    Raises:
        ApiError: the model has no template, or it refuses the messages.
    """
    if service.tokenizer.chat_template is None:
        raise wrong(field, "the model has no chat template; send a prompt to /v1/completions")
    laid_out = service.shapes.messages(messages, wanted)
    tools = wanted.offered or None
    try:
        return encode_chat(service.tokenizer, laid_out, tools=tools, add_generation_prompt=asks, goes_on=goes_on)
    except UserError as error:
        raise wrong(field, str(error)) from None


def _messages(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    return [_message(message, f"messages[{number}]", names) for number, message in enumerate(said)]


def _message(said: Mapping[str, Any], path: str, names: dict[str, str]) -> dict[str, Any]:
    """A message as templates expect it: those of developers are the system's, and arguments are objects.

    Args:
        names: of the functions that were called, by the id of the call; those of this message are added.
    """
    role, calls = said["role"], said["tool_calls"] or ()
    if said["content"] is None and not (role == "assistant" and (calls or said["refusal"])):
        raise wrong(f"{path}.content", "is missing", "missing_required_parameter")
    message = {"role": "system" if role == "developer" else role, "content": said["content"] or said["refusal"] or ""}
    if role != "assistant" and calls:
        raise wrong(f"{path}.tool_calls", f"is in a message of the {role}, only the assistant calls")
    if role == "tool":
        if said["tool_call_id"] is None:
            raise wrong(f"{path}.tool_call_id", "is missing", "missing_required_parameter")
        known = names.get(said["tool_call_id"], said["name"])
        message |= {"tool_call_id": said["tool_call_id"]} | ({"name": known} if known else {})
    if said["reasoning_content"] is not None:
        message["reasoning_content"] = said["reasoning_content"]
    if calls:
        message["tool_calls"] = [
            called(call["id"], call["function"], f"{path}.tool_calls[{number}].function", names)
            for number, call in enumerate(calls)
        ]
    return message


def called(id_: str, function: Mapping[str, Any], path: str, names: dict[str, str]) -> dict[str, Any]:
    """A call as templates expect it.

    Raises:
        ApiError: its arguments are not a JSON object.
    """
    try:
        arguments = parsed(function["arguments"].encode())
    except ApiError:
        place = f"{path}.arguments"
        raise wrong(place, f"is {shown(function['arguments'])}, JSON text of an object is expected") from None
    names[id_] = function["name"]
    return {"type": "function", "id": id_, "function": {"name": function["name"], "arguments": arguments}}
