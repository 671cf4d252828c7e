"""What the handler of a route gives back: JSON, other content, or a stream of events."""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """A whole answer."""

    content: Mapping[str, Any] | bytes
    """A JSON object, or bytes of `kind`."""
    status: int = 200
    kind: str = "application/json"
    headers: Mapping[str, str] = {}

    @property
    def bytes(self) -> bytes:
        """The content as it is sent."""
        return self.content if isinstance(self.content, bytes) else json_text(self.content)


@dataclass(frozen=True)
class Events:
    """An answer as server-sent events. An `ApiError` that the generator raises becomes the last event."""

    objects: AsyncGenerator[Mapping[str, Any], None]
    """Each is one event."""
    named: bool = False
    """Events have a name, the object's `type`, as those of responses; else they end with `[DONE]`, like chats."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, event: Mapping[str, Any]) -> bytes:
        """One event as it is sent."""
        name = b"event: " + str(event["type"]).encode() + b"\n" if self.named and "type" in event else b""
        return name + b"data: " + json_text(event) + b"\n\n"

    @property
    def end(self) -> bytes:
        """What is sent after the last event."""
        return b"" if self.named else b"data: [DONE]\n\n"


def json_text(value: Mapping[str, Any]) -> bytes:
    """JSON on one line, in ASCII: no text of an answer can end an event."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
