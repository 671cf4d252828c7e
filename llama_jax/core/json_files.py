"""Small files from elsewhere, above all JSON: bounded, strict, refused in one line. Contents are not interpreted."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote


def read_bounded(path: epath.PathLike, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        UserError: there is no such file, it is a directory, pipe or device, or it is longer than `max_bytes`.
    """
    file = epath.Path(path)
    # A pipe would be waited for without end; `is_file` of epath takes one for a file.
    if not (file.is_file() if is_remote(path) else Path(path).is_file()):
        raise UserError(f"{path}: is not a regular file" if file.exists() else f"{path}: no such file")
    with file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path}: is longer than {max_bytes} bytes, the most that such a file may have")
    return content


def read_json(path: epath.PathLike, *, max_bytes: int) -> dict[str, Any]:
    """The object that a JSON file holds; see `read_bounded` and `json_object` for what is refused."""
    return json_object(read_bounded(path, max_bytes), str(path))


def json_object(
    content: bytes, where: str, error_class: Callable[[str], Exception] = UserError, **hooks: Any
) -> dict[str, Any]:
    """The object that JSON text holds.

    Args:
        where: file, or part of one, for messages.
        error_class: of what is raised.
        hooks: of `json.loads`, in place of those that refuse; what they raise passes through, but for a ValueError.

    Raises:
        UserError: it is not UTF-8, not JSON as RFC 8259 has it (so no NaN), nested too deeply, has a key twice, or is
            not an object.
    """
    strict = {"object_pairs_hook": _unique_keys, "parse_constant": _refuse_constant, "parse_float": _finite}
    try:
        value = json.loads(content.decode(), **{**strict, **hooks})
    except UnicodeDecodeError as error:
        raise error_class(f"{where}: is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise error_class(f"{where}: is not JSON: {error.msg} in line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise error_class(f"{where}: is JSON nested too deeply") from None
    except ValueError as error:
        raise error_class(f"{where}: {str(error).partition(';')[0]}") from None
    if not isinstance(value, dict):
        raise error_class(f"{where}: holds {shown(value)} where a JSON object is expected")
    return value


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """An object as the JSON text of a file that people may read."""
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def shown(value: Any) -> str:
    """An unknown value as it may stand in a message: ASCII on one line, cut short."""
    return f"{value!a:.60}"


def agreed(where: str, values: Mapping[str, Any]) -> Any:
    """The value of one thing that may be said in several places; None if it is said nowhere.

    Args:
        where: file, for messages.
        values: what each place says, by its name for people; None: nothing.

    Raises:
        UserError: two places contradict each other; names both.
    """
    given = [(place, value) for place, value in values.items() if value is not None]
    for place, value in given[1:]:
        first, other = given[0]
        if value != other:
            raise UserError(f"{where}: {first} is {shown(other)}, but {place} is {shown(value)}; they must be the same")
    return given[0][1] if given else None


@dataclass(frozen=True)
class JsonFields:
    """The fields of a JSON object, each asked for by its type. A null counts as missing, as transformers has it.

    Each method takes a default for a missing field, None for one that must be there, and raises UserError, naming the
    field, when it is missing or of another type; `true` is not a number.
    """

    values: Mapping[str, Any]
    where: str
    """File, or part of one, for messages."""

    def whole(self, field: str, default: int | None = None) -> int:
        """A positive whole number below 2^31."""
        return self.checked(field, default, _is_whole, "a whole number from 1 to 2^31 - 1")

    def number(self, field: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A positive number, not less than `least`."""
        expected = f"a number of at least {least:g}" if least else "a number greater than 0"
        return float(self.checked(field, default, lambda value: _is_positive(value) and value >= least, expected))

    def flag(self, field: str, default: bool) -> bool:
        """True or false."""
        return self.checked(field, default, lambda value: isinstance(value, bool), "true or false")

    def fields(self, field: str) -> "JsonFields":
        """The fields of an object within this one; none of a missing object."""
        found = self.checked(field, {}, lambda value: isinstance(value, dict), "an object")
        return JsonFields(found, f"{self.where}: {field}")

    def one_of(self, field: str, supported: Iterable[Any], default: Any) -> Any:
        """A value that is supported; the message names those that are."""
        names = " or ".join(json.dumps(value) for value in supported)
        return self.checked(field, default, lambda value: value in supported, names)

    def checked(self, field: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        """A value for which `fits` is true; `expected` says in the message what that is."""
        value = self.values.get(field)
        if value is None and default is None:
            raise UserError(f"{self.where}: lacks {field}, {expected}")
        if value is None:
            return default
        if not fits(value):
            raise UserError(f"{self.where}: {field} is {shown(value)}; {expected} is expected")
        return value


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e30


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"has the key {shown(key)} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"has the value {name}, which JSON does not know")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"has the number {text:.20}, which is too large")
    return float(text)
