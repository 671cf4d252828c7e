"""Calls of functions in an answer: the grammar that holds an answer to them, and the reader that finds them in it."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_jax.inference.server.shapes.call_layout import CallLayout
from llama_jax.inference.server.shapes.grammar import json_grammar

_MOST_CALLS = 32
_TEXT = r"/(.|\n)*/"
_TEXT_THAT_IS_NO_CALL = r"/([^{](.|\n)*)?/"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that may be called."""

    name: str
    description: str | None
    parameters: Mapping[str, Any] | None
    """JSON schema of its arguments, an object; None: it takes none."""

    @property
    def described(self) -> dict[str, Any]:
        """In OpenAI's form, as templates expect it."""
        function: dict[str, Any] = {"name": self.name, "description": self.description or ""}
        return {"type": "function", "function": function | {"parameters": self.parameters or _NO_ARGUMENTS}}


def calls_grammar(tools: Sequence[Tool], layout: CallLayout, *, otherwise: str | None, parallel: bool) -> str:
    """The grammar of an answer that calls functions.

    Args:
        otherwise: an expression of the grammar for an answer that calls none; None: it must call one; empty: any text,
            which may also lead to a call.
        parallel: it may call several.
    """
    mark = layout.mark
    lines = [
        f"call: {_quoted(layout.rest)} ({' | '.join(f'tool_{number}' for number in range(len(tools)))})",
    ]
    for number, tool in enumerate(tools):
        arguments = json_grammar(tool.parameters or _NO_ARGUMENTS)
        lines.append(f"tool_{number}: {_quoted(tool.name + layout.middle)} {arguments} {_quoted(layout.closing)}")
    calls = "call"
    if parallel and layout.between is not None:
        calls += f" ({_quoted(layout.between + mark)} call){{0,{_MOST_CALLS - 1}}}"
    first = f"{_quoted(mark)} {calls}"
    if otherwise is None:
        start = first
    elif otherwise:
        start = f"{otherwise} | {first}"
    elif mark:
        # The shortest text up to the mark: behind it nothing but a call can come.
        start = f"TEXT | lead {calls}"
        lines += [f"TEXT: {_TEXT}", f"lead[lazy]: TEXT {_quoted(mark)}"]
    else:
        start = f"TEXT | {calls}"
        lines.append(f"TEXT: {_TEXT_THAT_IS_NO_CALL}")
    return "\n".join([f"start: {start}", *lines])


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


class CallReader:
    """The `Reader` of an answer that may call functions: what stands before the first call is content."""

    def __init__(self, layout: CallLayout) -> None:
        opening, middle = map(re.escape, (layout.opening, layout.middle))
        self._head = re.compile(rf"{opening}([\w-]+){middle}", re.ASCII)
        self._begins = layout.mark or layout.opening
        self._only_first = not layout.mark
        self._left = ""
        self._read = self._text
        self._calls = 0

    def push(self, text: str) -> list[dict[str, Any]]:
        """What the text adds to the message, as OpenAI's `delta`s."""
        self._left += text
        deltas: list[dict[str, Any]] = []
        while (delta := self._read()) is not None:
            deltas += [delta] if delta else []
        return deltas

    def finish(self, reason: str) -> tuple[list[dict[str, Any]], str]:
        """What is left, and the reason to give."""
        left = self._left if self._calls == 0 else ""
        return [{"content": left}] if left else [], "tool_calls" if self._calls and reason == "stop" else reason

    # Each of these takes something off `_left`, and returns the delta, perhaps empty; None: more text is needed.

    def _text(self) -> dict[str, Any] | None:
        """Up to the mark of a call, or to what may become one."""
        if self._only_first and self._left and not self._may_begin(self._left):
            self._read = self._rest
            return {}
        at = self._left.find(self._begins)
        if at < 0:
            lengths = range(min(len(self._begins) - 1, len(self._left)), 0, -1)
            held = next((size for size in lengths if self._begins.startswith(self._left[-size:])), 0)
            at = len(self._left) - held
        else:
            self._read = self._call
        text, self._left = self._left[:at], self._left[at:]
        if text or self._read == self._call:
            return {"content": text} if text and self._calls == 0 else {}
        return None

    def _may_begin(self, text: str) -> bool:
        return text.startswith(self._begins) or self._begins.startswith(text)

    def _rest(self) -> dict[str, Any] | None:
        """Everything is content."""
        text, self._left = self._left, ""
        return {"content": text} if text else None

    def _call(self) -> dict[str, Any] | None:
        """The head of a call, up to its arguments."""
        if (head := self._head.match(self._left)) is None:
            return None
        self._left, self._read = self._left[head.end() :], self._arguments
        self._depth, self._in_string, self._escaped = 0, False, False
        self._calls += 1
        call = {"index": self._calls - 1, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
        return {"tool_calls": [{**call, "function": {"name": head[1], "arguments": ""}}]}

    def _arguments(self) -> dict[str, Any] | None:
        """The arguments, up to the brace that ends them."""
        size = len(self._left)
        for place, character in enumerate(self._left):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth == 0:
                    size, self._read = place + 1, self._nothing if self._only_first else self._text
                    break
        text, self._left = self._left[:size], self._left[size:]
        return {"tool_calls": [{"index": self._calls - 1, "function": {"arguments": text}}]} if text else None

    def _nothing(self) -> None:
        """The end of a call that is the whole answer."""
        self._left = ""
