"""What a good record is: JSON that can be read, with a field that holds text. The one place that decides it, whatever
the record was read from."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from llama_jax.core.errors import nearest
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.file_bytes import BYTE_ORDER_MARK

MAX_RECORD_BYTES = 8 * 2**20
"""A record that is longer is bad, and is never read: tokenizers take 50 to 200 times the size of a text. The longest
books have 5 MB."""
_MAX_FIELDS_SHOWN = 8

T_co = TypeVar("T_co", covariant=True)


class Record(NamedTuple):
    """One record and where it is from."""

    place: str
    """For messages: `file:line`, or what else leads to the record."""
    values: dict[str, Any]
    """Strings, numbers, lists and dictionaries."""


@runtime_checkable
class RecordParser(Protocol[T_co]):
    """What of a record is the document, and when it is good; each method raises BadRecordError where it is not."""

    @property
    def field(self) -> str | None:
        """The one field that is read; None: all of them are."""
        ...

    def of_json(self, content: bytes, where: str, *, whole: bool = True) -> T_co:
        """The document in a JSON record; see `record_text`."""
        ...

    def of_value(self, value: Any, where: str) -> T_co:
        """The document in a row of a table: the value of the field, or a dictionary of all fields."""
        ...

    def of_text(self, text: Any, where: str) -> T_co:
        """The document in a record that is a text without fields."""
        ...


@dataclass(frozen=True)
class TextField:
    """The text in one field is the document."""

    field: str

    def of_json(self, content: bytes, where: str, *, whole: bool = True) -> str:
        return record_text(content, self.field, where, whole=whole)

    def of_value(self, value: Any, where: str) -> str:
        return good_text(value, self.field, where)

    def of_text(self, text: Any, where: str) -> str:
        return good_text(text, "record", where)


@dataclass(frozen=True)
class WholeRecord:
    """The record itself is the document; no object in it has a field twice. A text is a record of the field `text`."""

    field: None = None

    def of_json(self, content: bytes, where: str, *, whole: bool = True) -> Record:
        values = _object(content, where, whole=whole)
        if twice := _fields_twice(content).anywhere:
            raise BadRecordError("duplicate_field", where, f"has the field '{twice[0]:.40}' twice")
        return Record(where, values)

    def of_value(self, value: Any, where: str) -> Record:
        return Record(where, _plain(value, where))

    def of_text(self, text: Any, where: str) -> Record:
        return Record(where, {"text": good_text(text, "record", where)})


def record_text(content: bytes, text_field: str, where: str, *, whole: bool = True) -> str:
    """The text of one JSON record.

    What is in other fields does not matter: not NaN or Infinity, which JSON does not know, nor a key twice.

    Args:
        content: The bytes of an object; white space and a byte order mark around it are ignored.
        text_field: The field that holds the text.
        where: What leads to the record, for the error.
        whole: False when the file ends right after the record, without the end of a line: what is wrong with it is
            then that it was cut short.

    Raises:
        BadRecordError: the record is bad.
    """
    record = _object(content, where, f" with the field '{text_field}'", whole=whole)
    if text_field not in record:
        raise BadRecordError("missing_field", where, missing_field(text_field, list(record)))
    if content.count(json.dumps(text_field).encode()) > 1 and text_field in _fields_twice(content).outermost:
        raise BadRecordError("duplicate_field", where, f"has the field '{text_field}' twice")
    return good_text(record[text_field], text_field, where)


def _object(content: bytes, where: str, needed: str = "", *, whole: bool) -> dict[str, Any]:
    """The object that JSON text holds.

    Args:
        needed: What the object must have, for the error.
        whole: See `record_text`.
    """
    try:
        record = parsed_json(content, where)
    except BadRecordError as error:
        if not whole and error.reason in ("not_json", "not_utf8"):
            raise BadRecordError("truncated", where, f"the file ends within the record ({error.message})") from None
        raise
    if not isinstance(record, dict):
        raise BadRecordError("not_object", where, f"a JSON {kind_of(record)}; each record must be an object{needed}")
    return record


def parsed_json(content: bytes, where: str) -> Any:
    """The value that JSON text holds.

    Raises:
        BadRecordError: it cannot be read.
    """
    content = content.strip().removeprefix(BYTE_ORDER_MARK)
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise BadRecordError("not_utf8", where, f"not UTF-8 at byte {error.start} of the record") from None
    except json.JSONDecodeError as error:
        if b"\0" in content:
            reason, message = "nul", "not JSON: holds NUL bytes, like a file that was not written to its end"
        elif error.msg == "Extra data":
            reason, message = "trailing_data", f"not JSON: more than one value, from {_place(error)}"
        else:
            reason, message = "not_json", f"not JSON: {error.msg}, {_place(error)}"
        raise BadRecordError(reason, where, message) from None
    except RecursionError:
        raise BadRecordError("too_deep", where, "not JSON that can be read: brackets nested too deeply") from None
    except ValueError as error:
        message = f"not JSON that can be read: {str(error).split(';')[0]}"
        raise BadRecordError("number_too_long", where, message) from None


def good_text(value: Any, text_field: str, where: str) -> str:
    """The value of a text field as valid Unicode that is not blank; bytes are read as UTF-8.

    Raises:
        BadRecordError: it is not such a text.
    """
    if value is None:
        raise BadRecordError("null_field", where, f"field '{text_field}' is null; it must be a string")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            message = f"field '{text_field}' is not UTF-8 at byte {error.start}"
            raise BadRecordError("not_utf8", where, message) from None
    if not isinstance(value, str):
        raise BadRecordError(
            "wrong_type", where, f"field '{text_field}' is of type {kind_of(value)}; it must be a string"
        )
    if not value.strip():
        raise BadRecordError("empty", where, f"field '{text_field}' is empty; remove the record")
    if (nul := value.find("\0")) >= 0:
        raise BadRecordError("nul", where, f"field '{text_field}' holds NUL at character {nul}; remove it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        message = f"field '{text_field}' holds an unpaired surrogate at character {error.start}"
        raise BadRecordError("surrogate", where, message) from None
    if size > MAX_RECORD_BYTES:
        raise too_long(size, where)
    return value


def missing_field(text_field: str, fields: list[str]) -> str:
    """What to say when a record, a table or a data set has fields, but not the one asked for."""
    shown = ", ".join(f"{field:.40}" for field in fields[:_MAX_FIELDS_SHOWN])
    shown += ", ..." * (len(fields) > _MAX_FIELDS_SHOWN)
    return f"no field '{text_field}' (data.text_field); it has {shown or 'no field'}{nearest(text_field, fields)}"


def too_long(size: int, where: str) -> BadRecordError:
    """The error for a record of too many bytes."""
    return BadRecordError("too_long", where, f"{size} bytes long; a record may have {MAX_RECORD_BYTES}")


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)


def _place(error: json.JSONDecodeError) -> str:
    return f"line {error.lineno}, column {error.colno}" if error.doc.count("\n") else f"column {error.colno}"


class _Twice(NamedTuple):
    """Fields that objects have twice."""

    anywhere: list[str]
    outermost: list[str]
    """Those of the object that holds all others."""


def _fields_twice(content: bytes) -> _Twice:
    """Slow: it costs a call of Python an object."""
    anywhere: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> list[str]:
        counts = Counter(name for name, _ in pairs)
        own = [name for name, times in counts.items() if times > 1] if len(counts) < len(pairs) else []
        anywhere.extend(own)
        return own

    outermost = json.loads(content.strip().removeprefix(BYTE_ORDER_MARK).decode(), object_pairs_hook=look)
    return _Twice(anywhere, outermost)


def _plain(value: Any, where: str) -> Any:
    """NumPy's and bytes as JSON would have them."""
    if isinstance(value, dict):
        return {key: _plain(inner, where) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [_plain(inner, where) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadRecordError("not_utf8", where, f"a field is not UTF-8 at byte {error.start}") from None
    return value
