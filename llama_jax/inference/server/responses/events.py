"""A response as it comes into being: its object, and the events that tell of each change to it."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Event = dict[str, Any]


class Response:
    """A response, and the numbers of its events.

    Args:
        head: the fields of its object that do not change.
    """

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = dict(head)
        self._output: list[dict[str, Any]] = []
        self._logprobs: list[Any] = []
        """Those of tokens whose text has not come yet."""
        self._number = 0

    def begun(self) -> Iterator[Event]:
        """Before anything has come."""
        yield self._event("response.created", response=self._object("in_progress"))
        yield self._event("response.in_progress", response=self._object("in_progress"))

    def extended(self, deltas: Sequence[Mapping[str, Any]], logprobs: Sequence[Any]) -> Iterator[Event]:
        """What a piece of the answer adds.

        Args:
            deltas: as a `Reader` gives them.
            logprobs: of the piece's tokens, in the form of chats.
        """
        self._logprobs += logprobs
        for delta in deltas:
            if text := delta.get("content"):
                yield from self._with_text(text)
            for call in delta.get("tool_calls", ()):
                yield from self._with_call(call)

    def ended(self, status: str, usage: Mapping[str, Any], error: Mapping[str, Any] | None = None) -> Iterator[Event]:
        """After the last piece.

        Args:
            status: `completed`, `incomplete` or `failed`.
        """
        if not self._output and error is None:
            yield from self._with_text("")
        if self._output:
            yield from self._item_ended("completed" if status == "completed" else "incomplete")
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        ended = {**self._object(status), "usage": usage, "incomplete_details": details, "error": error}
        yield self._event(f"response.{status}", response=ended)

    def _object(self, status: str) -> dict[str, Any]:
        nothing = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": list(self._output), **nothing}

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _place(self, **more: Any) -> dict[str, Any]:
        """Where the item stands that goes on."""
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, **more}

    def _with_text(self, text: str) -> Iterator[Event]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        if not self._output or self._output[-1]["type"] != "message":
            item = {"type": "message", "role": "assistant", "content": []}
            yield from self._item_begun("msg", item)
            yield self._event("response.content_part.added", **self._place(content_index=0, part=part))
            self._output[-1]["content"] = [part]
        part, logprobs, self._logprobs = self._output[-1]["content"][0], self._logprobs, []
        part["text"] += text
        part["logprobs"] = part["logprobs"] + logprobs
        if text:
            delta = self._place(content_index=0, delta=text, logprobs=logprobs)
            yield self._event("response.output_text.delta", **delta)

    def _with_call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        function = call["function"]
        if "id" in call:
            item = {"type": "function_call", "call_id": call["id"], "name": function["name"], "arguments": ""}
            yield from self._item_begun("fc", item)
        if arguments := function["arguments"]:
            self._output[-1]["arguments"] += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(delta=arguments))

    def _item_begun(self, prefix: str, item: dict[str, Any]) -> Iterator[Event]:
        if self._output:
            yield from self._item_ended("completed")
        self._output.append({"id": f"{prefix}_{secrets.token_hex(16)}", "status": "in_progress", **item})
        place = {"output_index": len(self._output) - 1}
        yield self._event("response.output_item.added", **place, item=dict(self._output[-1]))

    def _item_ended(self, status: str) -> Iterator[Event]:
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            place = self._place(content_index=0)
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **place, **text)
            yield self._event("response.content_part.done", **place, part=dict(part))
        else:
            done = self._place(name=item["name"], arguments=item["arguments"])
            yield self._event("response.function_call_arguments.done", **done)
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=dict(item))
