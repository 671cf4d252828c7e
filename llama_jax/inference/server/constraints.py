"""What an answer must look like: `response_format`, `tools` and `tool_choice`, as a constraint on the engine's
tokens and a reader that takes its text apart.

(For now only plain text: everything else is refused by name.)"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llama_jax.inference.engine import Constraint
from llama_jax.inference.server.fields import IGNORED, Field, Fields, object_of, one_of, refused

if TYPE_CHECKING:
    from llama_jax.inference.server.service import Service

SHAPE: Fields = {
    "response_format": Field(object_of({"type": Field(one_of("text"), is_needed=True)})),
    "tools": refused("tools are not served", []),
    "tool_choice": refused("tools are not served", "none", "auto"),
    "parallel_tool_calls": IGNORED,
    "functions": refused("it was replaced by tools", []),
    "function_call": refused("it was replaced by tool_choice", "none"),
}
"""The fields of a chat request that say so."""


@runtime_checkable
class Reader(Protocol):
    """Takes the text of one answer apart as it comes."""

    def push(self, text: str) -> list[dict[str, Any]]:
        """What the text adds to the message, as OpenAI's `delta`s: `{"content": …}`, `{"tool_calls": […]}`."""
        ...

    def finish(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """What is left, and the reason to give: that of the engine ("stop", "length"), or "tool_calls"."""
        ...


class PlainText:
    """The `Reader` of an answer that is text."""

    def push(self, text: str) -> list[dict[str, Any]]:
        """The text as it is."""
        return [{"content": text}] if text else []

    def finish(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """Nothing is left."""
        return [], reason


@dataclass(frozen=True)
class Shape:
    """What the answers of one request must look like."""

    make_constraint: Callable[[], Constraint] | None = None
    """Made for each answer; None: any text."""
    make_reader: Callable[[], Reader] = PlainText


def shape_of(asked: Mapping[str, Any], service: "Service") -> Shape:
    """The shape that the fields of `SHAPE` ask for.

    Raises:
        ApiError: a schema or a tool cannot be served; names the field.
    """
    return Shape()
