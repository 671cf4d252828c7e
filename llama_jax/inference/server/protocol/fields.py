"""What a request may say: each field by a check of its type and bounds. A request is read by a table of them, and what
the table does not know is refused by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from llama_jax.core.errors import nearest
from llama_jax.core.json_files import shown
from llama_jax.inference.server.protocol.errors import ApiError, wrong

Check: TypeAlias = Callable[[Any, str], Any]
"""Of a value and its path: the value as it is used. Raises `ApiError`."""


class Field(NamedTuple):
    """A field of an object. A null counts as missing."""

    check: Check
    default: Any = None
    is_needed: bool = False


Fields: TypeAlias = Mapping[str, Field]


def read(fields: Fields, values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """All fields of the table, checked, those that are missing with their defaults.

    Raises:
        ApiError: a field is unknown, missing, or of a wrong value.
    """
    for name in values:
        if name not in fields:
            place = _within(path, shown(name)[1:-1])
            raise wrong(place, f"unknown field{nearest(name, fields)}", "unknown_parameter")
    found = {}
    for name, field in fields.items():
        value = values.get(name)
        if value is None and field.is_needed:
            raise wrong(_within(path, name), "is missing", "missing_required_parameter")
        found[name] = field.default if value is None else field.check(value, _within(path, name))
    return found


def text(most: int | None = None, least: int = 0) -> Check:
    """A string, of at least and at most so many characters."""

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise _unfit(path, value, "a string")
        if len(value) < least:
            raise wrong(path, f"must have at least {least} characters")
        if most is not None and len(value) > most:
            raise wrong(path, f"has {len(value)} characters, at most {most} are allowed")
        return value

    return check


def whole(least: int, most: int) -> Check:
    """A whole number; one such as 2.0 too, which some clients send."""

    def check(value: Any, path: str) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise _unfit(path, value, f"a whole number from {least} to {most}")
        return value

    return check


def number(least: float, most: float, *, above: bool = False) -> Check:
    """A number, greater than `least` where `above`."""

    def check(value: Any, path: str) -> float:
        # As written here NaN is refused too.
        if type(value) not in (int, float) or not least <= value <= most or (above and value == least):
            expected = f"a number greater than {least:g} and at most" if above else f"a number from {least:g} to"
            raise _unfit(path, value, f"{expected} {most:g}")
        return float(value)

    return check


def flag(value: Any, path: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _unfit(path, value, "true or false")
    return value


def one_of(*names: str) -> Check:
    """One of some words."""

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or value not in names:
            hint = nearest(value, names) if isinstance(value, str) else ""
            raise _unfit(path, value, f"{' or '.join(names)}", hint)
        return value

    return check


def list_of(check_each: Check, most: int, least: int = 0) -> Check:
    """A list of at least and at most so many."""

    def check(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise _unfit(path, value, "a list")
        if not least <= len(value) <= most:
            raise wrong(path, f"has {len(value)} elements; from {least} to {most} are allowed")
        return [check_each(each, f"{path}[{number}]") for number, each in enumerate(value)]

    return check


def object_of(fields: Fields) -> Check:
    """An object with fields of its own."""

    def check(value: Any, path: str) -> dict[str, Any]:
        return read(fields, any_object(value, path), path)

    return check


def any_object(value: Any, path: str) -> dict[str, Any]:
    """An object, whatever is in it."""
    if not isinstance(value, dict):
        raise _unfit(path, value, "an object")
    return value


def table(check_name: Check, check_each: Check, most: int) -> Check:
    """An object of at most so many fields, whose names are checked too."""

    def check(value: Any, path: str) -> dict[Any, Any]:
        if len(any_object(value, path)) > most:
            raise wrong(path, f"has {len(value)} entries, at most {most} are allowed")
        return {check_name(name, path): check_each(each, f"{path}.{shown(name)[1:-1]}") for name, each in value.items()}

    return check


def either(expected: str, checks: Mapping[type, Check]) -> Check:
    """The check of the value's type; `expected` says which there are."""

    def check(value: Any, path: str) -> Any:
        if type(value) not in checks:
            raise _unfit(path, value, expected)
        return checks[type(value)](value, path)

    return check


def anything(value: Any, path: str) -> Any:
    """Any value."""
    return value


def refused(reason: str, *harmless: Any) -> Field:
    """A field that is known but not served: only values that ask for nothing are accepted."""

    def check(value: Any, path: str) -> None:
        if not any(value == each and type(value) is type(each) for each in harmless):
            raise wrong(path, f"{reason}, so {shown(value)} cannot be taken", "unsupported_parameter")

    return Field(check)


IGNORED = Field(anything)
"""A field that changes nothing."""


def _within(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unfit(path: str, value: Any, expected: str, hint: str = "") -> ApiError:
    found = {dict: "an object", list: "a list"}.get(type(value)) or shown(value)
    return wrong(path, f"is {found}, {expected} is expected{hint}", "invalid_value")
