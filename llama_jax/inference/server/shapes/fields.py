"""The fields of a chat request that say what its answers must look like."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_jax.core.json_files import shown
from llama_jax.inference.server.protocol.errors import wrong
from llama_jax.inference.server.protocol.fields import (
    Field,
    Fields,
    any_object,
    either,
    flag,
    list_of,
    object_of,
    one_of,
    refused,
    text,
)
from llama_jax.inference.server.shapes.calls import Tool
from llama_jax.inference.server.shapes.shape import Wanted

ANY_OBJECT = {"type": "object"}
"""The schema of `json_object`."""


def name(value: Any, path: str) -> str:
    """The name of a function or a schema."""
    found = text(64, 1)(value, path)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", found):
        raise wrong(path, f"is {shown(found)}; only letters, digits, _ and - are allowed")
    return found


FUNCTION: Fields = {
    "name": Field(name, is_needed=True),
    "description": Field(text()),
    "parameters": Field(any_object),
    "strict": Field(flag),
}
"""A function that may be called. Arguments are always held to the schema."""

_FORMAT: Fields = {
    "type": Field(one_of("text", "json_object", "json_schema"), is_needed=True),
    "json_schema": Field(
        object_of(
            {
                "name": Field(name, is_needed=True),
                "description": Field(text()),
                "schema": Field(any_object),
                "strict": Field(flag),
            }
        )
    ),
}
_TOOL: Fields = {
    "type": Field(one_of("function"), is_needed=True),
    "function": Field(object_of(FUNCTION), is_needed=True),
}
_CHOICE: Fields = {
    "type": Field(one_of("function"), is_needed=True),
    "function": Field(object_of({"name": Field(name, is_needed=True)}), is_needed=True),
}
CHOICES = one_of("none", "auto", "required")
TOOLS: Fields = {
    "tools": Field(list_of(object_of(_TOOL), 128), ()),
    "tool_choice": Field(either("none, auto, required or an object", {str: CHOICES, dict: object_of(_CHOICE)})),
    "parallel_tool_calls": Field(flag, True),
    "functions": refused("it was replaced by tools", []),
    "function_call": refused("it was replaced by tool_choice", "none"),
}
SHAPE: Fields = {"response_format": Field(object_of(_FORMAT))}


def wanted_of(asked: Mapping[str, Any]) -> Wanted:
    """What the fields of `SHAPE` and `TOOLS` ask for, as `read` gives them; those of `SHAPE` may be missing.

    Raises:
        ApiError: they contradict one another.
    """
    form: Any = asked.get("response_format") or {"type": "text"}
    schema: Any = None
    schema_field = "response_format"
    if form["type"] != "text":
        schema = ANY_OBJECT
        if form["type"] == "json_schema":
            schema_field = "response_format.json_schema"
            if form["json_schema"] is None:
                raise wrong(schema_field, "is missing", "missing_required_parameter")
            # Any JSON value, where nothing is said of it.
            schema, schema_field = form["json_schema"]["schema"] or {}, f"{schema_field}.schema"
    functions, choice = [each["function"] for each in asked["tools"]], asked["tool_choice"] or "auto"
    only = choice["function"]["name"] if isinstance(choice, dict) else None
    call: Any = "required" if only else choice
    return Wanted(schema, schema_field, tools_of(functions, call, only), call, only, asked["parallel_tool_calls"])


def tools_of(functions: Sequence[Mapping[str, Any]], call: str, only: str | None) -> list[Tool]:
    """The functions that may be called, as `FUNCTION` reads them.

    Raises:
        ApiError: two have one name, or what must be called is not among them.
    """
    names = [function["name"] for function in functions]
    for number, each in enumerate(names):
        if each in names[:number]:
            raise wrong(f"tools[{number}]", f"has the name {each}, as another one before it")
    if (only and only not in names) or (call == "required" and not names):
        there_are = f"there is {', '.join(names)}" if names else "there are none"
        raise wrong("tool_choice", f"is {only or call}, but of tools {there_are}")
    return [Tool(function["name"], function["description"], function["parameters"]) for function in functions]
