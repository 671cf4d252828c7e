"""Typed access to the metadata of a GGUF file. A value of the wrong type is refused where it is asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_jax.checkpoints.formats.gguf_header import Value
from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class GgufValues:
    """The keys of a file; every method raises UserError if the value has another type, or is missing without a
    default."""

    path: str
    values: Mapping[str, Value]

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number, at least 0; one for each layer counts as one when all are equal."""
        value = self._value(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or value < 0:
            raise self._error(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._error(key, value, "a finite number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._error(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of strings."""
        value = self._value(key, default)
        if not isinstance(value, list):
            raise self._error(key, value, "a list of strings")
        return value

    def numbers(self, key: str, count: int, kind: type[np.number]) -> np.ndarray:
        """`count` finite numbers of a kind: `np.integer` or `np.floating`."""
        value = self._value(key, None)
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, kind) or len(value) != count:
            raise self._error(key, value, f"{count} numbers of kind {kind.__name__}")
        if not np.isfinite(value).all():
            raise self._error(key, value[~np.isfinite(value)], "nothing but finite numbers")
        return value

    def token(self, key: str, count: int) -> int:
        """An id of a vocabulary of `count` tokens."""
        token = self.whole(key)
        if token >= count:
            raise self._error(key, token, f"one of the {count} tokens")
        return token

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def _value(self, key: str, default: Value | None) -> Value:
        value = self.values.get(key, default)
        if value is None:
            raise UserError(f"{self.path}: lacks the key {key}")
        return value

    def _error(self, key: str, value: Value, expected: str) -> UserError:
        shown = " ".join(f"{value!r:.60}".split())
        return UserError(f"{self.path}: {key} is {shown}; expected {expected}")
