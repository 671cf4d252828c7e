"""What a good record is: JSON that can be read, with a field that holds text. The one place that decides it, whatever
the record was read from."""

import json
from typing import Any

from llama_jax.core.errors import nearest
from llama_jax.data.documents import BadRecordError

MAX_RECORD_BYTES = 64 * 2**20
"""A record that is longer is bad, and is never read."""
_BOM = b"\xef\xbb\xbf"
_MAX_FIELDS_SHOWN = 8


def record_text(content: bytes, text_field: str, where: str, *, whole: bool = True) -> str:
    """The text of one JSON record.

    What stands in other fields does not matter: not NaN or Infinity, which JSON does not know, nor a key twice.

    Args:
        content: The bytes of an object; white space and a byte order mark around it are passed over.
        text_field: The field that holds the text.
        where: What leads to the record, for the error.
        whole: False when the file ends right after the record, without the end of a line: what is wrong with it is
            then that it was cut short.

    Raises:
        BadRecordError: the record is bad.
    """
    try:
        record = parsed_json(content, where)
    except BadRecordError as error:
        if not whole and error.reason in ("not_json", "not_utf8"):
            raise BadRecordError("truncated", where, f"the file ends within the record ({error.message})") from None
        raise
    if not isinstance(record, dict):
        raise BadRecordError(
            "not_object", where, f"a JSON {_kind(record)}; each record must be an object with the field '{text_field}'"
        )
    if text_field not in record:
        raise BadRecordError("missing_field", where, missing_field(text_field, list(record)))
    if content.count(json.dumps(text_field).encode()) > 1 and _is_twice(content, text_field):
        raise BadRecordError("duplicate_field", where, f"has the field '{text_field}' twice")
    return good_text(record[text_field], text_field, where)


def parsed_json(content: bytes, where: str) -> Any:
    """The value that JSON text holds.

    Raises:
        BadRecordError: it cannot be read.
    """
    content = content.strip().removeprefix(_BOM)
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise BadRecordError("not_utf8", where, f"not UTF-8 at byte {error.start} of the record") from None
    except json.JSONDecodeError as error:
        if b"\0" in content:
            reason, message = "nul", "not JSON: holds NUL bytes, as a file does that was not written to its end"
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
    """The value of a text field as a text of Unicode that is not blank; bytes are taken for UTF-8.

    Raises:
        BadRecordError: it is none.
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
            "wrong_type", where, f"field '{text_field}' is of type {_kind(value)}; it must be a string"
        )
    if not value.strip():
        raise BadRecordError("empty", where, f"field '{text_field}' is empty; remove the record")
    if (nul := value.find("\0")) >= 0:
        raise BadRecordError("nul", where, f"field '{text_field}' holds NUL at character {nul}, which is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"field '{text_field}' holds half a surrogate pair at character {error.start}"
        raise BadRecordError("surrogate", where, message) from None
    return value


def missing_field(text_field: str, fields: list[str]) -> str:
    """What to say when a record, a table or a data set has fields, but not the one asked for."""
    shown = ", ".join(f"{field:.40}" for field in fields[:_MAX_FIELDS_SHOWN])
    shown += ", ..." * (len(fields) > _MAX_FIELDS_SHOWN)
    return f"no field '{text_field}' (data.text_field); it has {shown or 'no field'}{nearest(text_field, fields)}"


def too_long(size: int, where: str) -> BadRecordError:
    """The error for a record of too many bytes."""
    return BadRecordError("too_long", where, f"{size} bytes long; a record may have {MAX_RECORD_BYTES}")


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)


def _place(error: json.JSONDecodeError) -> str:
    return f"line {error.lineno}, column {error.colno}" if error.doc.count("\n") else f"column {error.colno}"


def _is_twice(content: bytes, text_field: str) -> bool:
    """Whether the outermost object has a field twice. Slow, as it costs a call of Python an object."""
    last: list[int] = []

    def count(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        last[:] = [sum(key == text_field for key, _ in pairs)]
        return {}

    json.loads(content.strip().removeprefix(_BOM).decode(), object_pairs_hook=count)
    return last[0] > 1
