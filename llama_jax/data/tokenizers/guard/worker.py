"""A `tokenizer.json` whose parts are not known to be harmless: for `GuardedProcess`. Imports nothing but tokenizers."""

import os
from collections.abc import Callable
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would need address space of their own

import tokenizers

_loaded: list[tokenizers.Tokenizer] = []
_failure: dict[str, str] = {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`found`, or `error`, for a `call` of `_CALLS` and its `value`. A file that cannot be loaded is an error of every
    request."""
    try:
        return _failure or {"found": _CALLS[request["call"]](request["value"])}
    except BaseException as error:  # a panic of the library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        failure = {"error": (str(error).splitlines() or [type(error).__name__])[0][:200]}
        if request["call"] == "load":
            _failure.update(failure)
        return failure


def _load(content: str) -> None:
    _loaded[:] = [tokenizers.Tokenizer.from_str(content)]


def _encode(value: tuple[str, bool]) -> list[int]:
    text, _loaded[0].encode_special_tokens = value
    return _loaded[0].encode(text, add_special_tokens=False).ids


def _decode(ids: list[int]) -> str:
    return _loaded[0].decode(ids, skip_special_tokens=True)


def _decode_names(names: list[str]) -> str:
    return _loaded[0].decoder.decode(names)


_CALLS: dict[str, Callable[[Any], Any]] = {
    "load": _load,
    "encode": _encode,
    "decode": _decode,
    "decode_names": _decode_names,
}
