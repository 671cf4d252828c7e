"""Calls a user's reward function: for `GuardedProcess`. Imports nothing of ours.

First asked to open one, `{"file", "function"}`, then whether it is open and takes arguments of some names, `{"names"}`,
null where they are not known, and for rewards, `{"arguments"}`. Answers `rewards`, of each completion a number, null,
or a text that says what is there in place of a number; or `error`, or `unopened`."""

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

_function: Callable[..., Any] | None = None
_why_not = "was never opened"


class _NotThere(Exception):
    """There is no such function."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """See above. Whatever the function does, short of ending the process, is an answer."""
    global _function, _why_not
    if "file" in request:
        try:
            _function = _opened(request["file"], request["function"])
        except BaseException as error:
            _why_not = _complaint(error)
        return {}
    if _function is None:
        return {"unopened": _why_not}
    if "names" in request:
        return _refusal(_function, request["names"])
    try:
        result = _function(**request["arguments"])
        found = asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
        if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping | Set):
            return {"error": f"gives {_shown(found)}, not a list with a reward for each completion"}
        return {"rewards": [_number(each) for each in found]}
    except BaseException as error:
        return {"error": _complaint(error)}


def _opened(file: str, name: str) -> Callable[..., Any]:
    sys.path.insert(0, str(Path(file).parent))  # what lies beside it can be imported
    spec = importlib.util.spec_from_file_location("rewards", file)
    if spec is None or spec.loader is None:
        raise _NotThere("is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["rewards"] = module
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        known = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_")
        raise _NotThere(f"has no function '{name}'; there are {', '.join(known) or 'none'}")
    return found


def _refusal(function: Callable[..., Any], names: list[str] | None) -> dict[str, Any]:
    if names is None:
        return {}
    try:
        inspect.signature(function).bind(**dict.fromkeys(names))
    except TypeError as error:
        return {"unopened": f"{error}; it is called with {', '.join(names):.1000}"}
    except ValueError:
        pass  # written in C: only a call can tell
    return {}


async def _awaited(result: Any) -> Any:
    return await result


def _number(value: Any) -> float | str | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return _shown(value)
    return float(value)


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}"


def _complaint(error: BaseException) -> str:
    if isinstance(error, _NotThere):
        return f"{error!s:.500}"
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            line = trace.tb_lineno
        trace = trace.tb_next
    message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return f"line {line}: {message:.300}" if line else f"{message:.300}"
