"""The body of a request: bounded, strict JSON. What is wrong with it is said with the field it is in."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from llama_jax.core.json_files import json_object, shown
from llama_jax.inference.server.protocol.errors import ApiError, wrong

_DEEPEST = 64
_LONGEST_NUMBER = 30


async def read_body(
    headers: Mapping[str, str], receive: Callable[[], Awaitable[Any]], most: int, seconds: float
) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        ApiError: it is said to be something else, is longer than `most` bytes, or is not there in time.
        ConnectionError: the client has left.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another origin can send other types without being asked whether it may.
    if kind != "application/json":
        raise ApiError(f"content-type: is {shown(kind)}, application/json is expected", status=415)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError("content-encoding: only identity is served; send the body as it is", status=415)
    too_long = ApiError(f"body: is longer than {most} bytes, the most that is allowed", status=413)
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                if size > most:
                    raise too_long
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(f"body: did not arrive within {seconds:g} seconds", status=408) from None


def parsed(content: bytes) -> dict[str, Any]:
    """The object that JSON text holds.

    Raises:
        ApiError: it is not UTF-8, not JSON as RFC 8259 has it, nested too deeply, has a key twice, a number that is
            none or beyond all bounds, or half of a surrogate pair; or it is not an object.
    """
    # Numbers that are none or too large are refused by `_check`, which knows their fields.
    numbers = {"parse_int": _bounded, "parse_float": float, "parse_constant": float}
    value = json_object(content, "body", ApiError, object_pairs_hook=_unique_keys, **numbers)
    _check(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise wrong(shown(name)[1:-1], "is given twice")
        found[name] = value
    return found


def _bounded(digits: str) -> int | float:
    # Python refuses to read thousands of digits, and no field takes numbers as long as these.
    return int(digits) if len(digits) <= _LONGEST_NUMBER else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _check(value: dict[str, Any]) -> None:
    """Without recursion: what is nested deeply may be nested too deeply for it."""
    left: list[tuple[Any, str, int]] = [(value, "", 0)]
    while left:
        value, path, depth = left.pop()
        if depth > _DEEPEST:
            raise ApiError(f"{path[:80]}: is nested deeper than {_DEEPEST} levels", param=path[:80])
        inner: Iterable[tuple[str, Any]] = ()
        if isinstance(value, dict):
            for name in value:
                _check_text(name, path or "body")
            # Names cut short: each goes into the path of all that is below it.
            inner = ((f"{path}.{shown(name)[1:-1]}".lstrip("."), each) for name, each in value.items())
        elif isinstance(value, list):
            inner = ((f"{path}[{number}]", each) for number, each in enumerate(value))
        elif isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, float) and not math.isfinite(value):
            raise wrong(path, "is not a finite number, or one beyond all bounds")
        left += ((each, place, depth + 1) for place, each in inner)


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(path, f"has half of a surrogate pair, {shown(text[error.start])}, at {error.start}") from None
