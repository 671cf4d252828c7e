"""Conversations of a request as tokens, by the model's chat template."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_jax.core.errors import UserError
from llama_jax.data.chat import encode_chat
from llama_jax.inference.server.errors import of_user_error, wrong
from llama_jax.inference.server.fields import Field, Fields, flag, list_of, object_of, one_of, refused, text

if TYPE_CHECKING:
    from llama_jax.inference.server.service import Service

_MESSAGE: Fields = {
    "role": Field(one_of("system", "user", "assistant"), is_needed=True),
    "content": Field(text(), is_needed=True),
    "name": Field(text(64)),
}
CONVERSATION: Fields = {
    "messages": Field(list_of(object_of(_MESSAGE), 2048, 1), is_needed=True),
    "add_generation_prompt": Field(flag, True),
    "continue_final_message": refused("an answer cannot be continued", False),
}
"""The fields of a chat request that say what was said."""


def conversation_ids(asked: Mapping[str, Any], service: "Service") -> list[int]:
    """The prompt of a conversation. Slow: renders the template in another process. Called in a thread.

    Args:
        asked: the fields of `CONVERSATION` (and whatever else the template is to see), as `read` gives them.

    Raises:
        ApiError: the model has no template, or it refuses the messages.
    """
    messages = [{key: message[key] for key in ("role", "content")} for message in asked["messages"]]
    try:
        return encode_chat(service.tokenizer, messages, add_generation_prompt=asked["add_generation_prompt"])
    except UserError as error:
        if service.tokenizer.chat_template is None:
            raise wrong("messages", "the model has no chat template; send a prompt to /v1/completions") from None
        raise of_user_error(error) from None
