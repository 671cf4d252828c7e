"""Records of an evaluation: JSON objects in a file, or a prepared data set of tensorflow-datasets. Knows no task."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.record_text import Record, parsed_json

_RECORD_BYTES = 16 * 2**20
_ARRAY_BYTES = 2**30
_TFDS = "tfds:"


def read_records(source: str) -> list[Record]:
    """The records of a source, in its order.

    Args:
        source: a file of JSON lines (.jsonl), a file with one JSON array of objects (.json), or `tfds:NAME:SPLIT` or
            `tfds:NAME/CONFIG:SPLIT` for a data set of tensorflow-datasets, which is prepared if it is not yet.

    Raises:
        UserError: there is no such source, no record in it, or a record is broken; names the line.
    """
    file, kinds = epath.Path(source).expanduser(), "give a .jsonl or .json file, or tfds:NAME:SPLIT"
    if source.startswith(_TFDS):
        records = list(_prepared(source))
    elif not file.is_file():
        raise UserError(f"--data {source}: no such file; {kinds}")
    elif file.suffix.lower() == ".jsonl":
        records = list(_lines(file))
    elif file.suffix.lower() == ".json":
        records = list(_array(file))
    else:
        raise UserError(f"--data {source}: is of no known kind; {kinds}")
    if not records:
        raise UserError(f"--data {source}: holds no record")
    return records


def _lines(file: epath.Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(_RECORD_BYTES + 1):
            number += 1
            place = f"{file}:{number}"
            if len(line) > _RECORD_BYTES:
                raise UserError(f"{place}: longer than {_RECORD_BYTES} bytes; each line must be one JSON object")
            if line.strip():
                yield _record(_parsed(line, place), place)


def _array(file: epath.Path) -> Iterator[Record]:
    if (size := file.stat().length) > _ARRAY_BYTES:
        raise UserError(f"{file}: {size} bytes of JSON are too many to hold; write JSON lines (.jsonl)")
    array = _parsed(file.read_bytes(), str(file))
    if not isinstance(array, list):
        raise UserError(f"{file}: a JSON {type(array).__name__}; an array of objects is needed, or JSON lines (.jsonl)")
    for number, value in enumerate(array, 1):
        yield _record(value, f"{file}: record {number}")


def _parsed(content: bytes, place: str) -> Any:
    try:
        return parsed_json(content, place)
    except BadRecordError as error:
        raise UserError(str(error)) from None


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a JSON {type(value).__name__}; each record must be an object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: holds half a surrogate pair, which is no text") from None
    return Record(place, value)


def _prepared(source: str) -> Iterator[Record]:
    name, _, split = source.removeprefix(_TFDS).partition(":")
    if not name or not split:
        raise UserError(f"--data {source}: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
    import tensorflow_datasets as tfds  # a second that only its users should pay

    try:
        builder: Any = tfds.builder(name, try_gcs=False)
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
        elements = builder.as_data_source(split)
    except Exception as error:  # the library raises whatever its many parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--data {source}: {reason}") from None
    for index in range(len(elements)):
        yield _record(_plain(elements[index]), f"{source}[{index}]")


def _plain(value: Any) -> Any:
    """NumPy's and bytes as JSON would have them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
