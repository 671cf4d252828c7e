"""Parquet files as documents: one row each, its row group decoded when a row of it is asked for."""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote
from llama_jax.data.sources.documents import BadRecordError, ParsedRows
from llama_jax.data.sources.file_bytes import ProcessCache, read_range, sampled_digest, unreadable
from llama_jax.data.sources.record_text import RecordParser, missing_field

_CACHE_BYTES = 256 * 2**20

_T = TypeVar("_T")


def _too_many_bytes(columns: Collection[pa.ChunkedArray | str]) -> bool:
    return sum(len(column) if isinstance(column, str) else column.nbytes for column in columns) > _CACHE_BYTES


_cache = ProcessCache(_too_many_bytes)
"""Decoded row groups of all files, of 256 MiB together or of one alone; or what is wrong with one."""


class ParquetValues:
    """A parquet file value by value: those of one column, or dictionaries of all. Holds 8 bytes a row group and what
    the process keeps decoded.

    Rows at random, of files that hold more than the 256 MiB that are kept decoded, decode a row group for each: let
    `prepare` write such a corpus again first.

    Args:
        path: The file.
        column: The name of a column of strings or bytes; None takes all.

    Raises:
        UserError: the file cannot be read, is not a parquet file or was cut short, or has no such column of strings.
    """

    def __init__(self, path: epath.Path, column: str | None) -> None:
        with _open(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            self._ends = np.cumsum([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
        self._path, self._name = path, column
        if column is not None:
            _check_strings(path, schema, column)
        footer_bytes = int.from_bytes(read_range(path, (size := path.stat().length) - 8, size)[:4], "little") + 8
        self._digest = sampled_digest(path, footer_bytes)
        self._key = (str(path), self._name, self._digest)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Any:
        """A value of the column: a string, bytes or None; or the row as a dictionary.

        Raises:
            BadRecordError: the row group that holds it is damaged, or a string is not UTF-8.
        """
        group = int(np.searchsorted(self._ends, row, side="right"))
        where = f"{self._path} row {row}"
        column = _cache.get((self._key, group), lambda: self._read_row_group(group))
        if isinstance(column, str):
            raise BadRecordError("damaged", where, f"row group {group} cannot be decoded: {column}")
        within = row - (int(self._ends[group - 1]) if group else 0)
        if within >= len(column):
            raise BadRecordError("damaged", where, f"row group {group} ends after {len(column)} rows")
        try:
            return column[within].as_py()
        except UnicodeDecodeError as error:
            column = "a column" if self._name is None else f"column '{self._name}'"
            message = f"{column} is not UTF-8 at byte {error.start}"
            raise BadRecordError("not_utf8", where, message) from None

    def _read_row_group(self, number: int) -> pa.ChunkedArray | str:
        """Decode what is wanted of a row group; gives what is wrong where its bytes are damaged."""
        columns = None if self._name is None else [self._name]
        try:
            with _open(self._path) as file:
                table = file.read_row_group(number, columns=columns, use_threads=False)
                return table.to_struct_array() if columns is None else table.column(0)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk or the bucket, not the file: no record is bad
                raise
            return str(error).strip().splitlines()[0]

    def identity(self) -> str:
        """SHA-256 of the length of the file, its start and its footer, which has the place, size and number of values
        of every page. A byte that is changed within a page, with all sizes kept, is not seen."""
        return self._digest


def open_parquet(path: epath.Path, parser: RecordParser[_T]) -> ParsedRows[_T]:
    """The documents of a parquet file, one a row.

    Raises:
        UserError: as `ParquetValues` has it.
    """
    return ParsedRows(ParquetValues(path, parser.field), parser.of_value, f"{path} row")


def _open(path: epath.Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path.open("rb") if is_remote(path) else str(path))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from None


def _check_strings(path: epath.Path, schema: pa.Schema, column: str) -> None:
    types: Mapping[str, pa.DataType] = {field.name: field.type for field in schema}
    if column not in types:
        raise UserError(f"data.source: {path}: {missing_field(column, list(types))}")
    if not _is_string(types[column]):
        strings = ", ".join(name for name, kind in types.items() if _is_string(kind)) or "none"
        raise UserError(
            f"data.source: {path}: column '{column}' (data.text_field) is of type {types[column]}; columns of strings: "
            f"{strings}"
        )


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_string(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    tests += (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)
    return any(test(kind) for test in tests)
