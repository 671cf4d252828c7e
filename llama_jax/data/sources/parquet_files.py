"""Parquet files as documents: one row each, its row group decoded when a row of it is asked for."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote
from llama_jax.data.sources.documents import BadRecordError, ParsedRows
from llama_jax.data.sources.file_bytes import ProcessCache, check_count, read_range, sampled_digest, unreadable
from llama_jax.data.sources.record_text import MAX_RECORD_BYTES, RecordParser, missing_field, too_long

_CACHE_BYTES = 256 * 2**20
_MOST_UNPACKED = 100  # times as many bytes as a row group takes in the file, where they are more than are kept
_VALUE_BYTES = {"INT96": 12, "BYTE_ARRAY": 4}
"""Bytes of a value once decoded, where they are not 8. Of a text it is the number by which the dictionary knows it."""

_T = TypeVar("_T")


class _RowGroup(NamedTuple):
    """What is wanted of a row group, decoded."""

    rows: pa.ChunkedArray
    may_repeat: bool
    """Whether a row may be long because it has one text very often."""


def _too_many_bytes(groups: Collection[_RowGroup | str]) -> bool:
    return sum(len(group) if isinstance(group, str) else group.rows.nbytes for group in groups) > _CACHE_BYTES


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
        UserError: the file cannot be read, is not a parquet file or was cut short, has no such column of strings, or
            declares much more than its size can hold.
    """

    def __init__(self, path: epath.Path, column: str | None) -> None:
        with _open(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._path, self._name = path, column
        if column is not None:
            _check_strings(path, schema, column)
        size = path.stat().length
        for count in (*counts, sum(counts)):
            check_count(path, count, size)
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._texts = _check_sizes(path, metadata, column)
        footer_bytes = int.from_bytes(read_range(path, size - 8, size)[:4], "little") + 8
        self._digest = sampled_digest(path, footer_bytes)
        self._key = (str(path), self._name, self._digest)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Any:
        """A value of the column: a string, bytes or None; or the row as a dictionary.

        Raises:
            BadRecordError: the row group that holds it is damaged, a string is not UTF-8, or the row is too long.
        """
        group = int(np.searchsorted(self._ends, row, side="right"))
        where = f"{self._path} row {row}"
        found = _cache.get((self._key, group), lambda: self._read_row_group(group))
        if isinstance(found, str):
            raise BadRecordError("damaged", where, f"row group {group} cannot be decoded: {found}")
        column = found.rows
        within = row - (int(self._ends[group - 1]) if group else 0)
        if within >= len(column):
            raise BadRecordError("damaged", where, f"row group {group} ends after {len(column)} rows")
        if found.may_repeat and (size := _unpacked_bytes(column.slice(within, 1))) > MAX_RECORD_BYTES:
            raise too_long(size, where)
        try:
            return column[within].as_py()
        except UnicodeDecodeError as error:
            column = "a column" if self._name is None else f"column '{self._name}'"
            message = f"{column} is not UTF-8 at byte {error.start}"
            raise BadRecordError("not_utf8", where, message) from None

    def _read_row_group(self, number: int) -> _RowGroup | str:
        """Decode what is wanted of a row group; gives what is wrong where its bytes are damaged."""
        columns = None if self._name is None else [self._name]
        try:
            with _open(self._path, self._texts) as file:
                table = file.read_row_group(number, columns=columns, use_threads=False)
            if columns is not None:
                return _RowGroup(table.column(0), may_repeat=False)
            rows = table.to_struct_array()
            return _RowGroup(rows, may_repeat=_unpacked_bytes(rows) > _CACHE_BYTES)
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


def _open(path: epath.Path, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """The file, of which some columns are read as dictionaries and the number of each row: one long text may stand for
    very many rows."""
    try:
        return pq.ParquetFile(path.open("rb") if is_remote(path) else str(path), read_dictionary=list(dictionaries))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from None


def _check_sizes(path: epath.Path, metadata: pq.FileMetaData, column: str | None) -> list[str]:
    """The paths of the columns of texts among those wanted.

    Raises:
        UserError: a row group unpacks very many bytes from few.
    """
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    wanted = [number for number, leaf in enumerate(leaves) if column in (None, leaf.path)]
    for group in range(metadata.num_row_groups):
        packed = unpacked = 0
        for number in wanted:
            chunk, kind = metadata.row_group(group).column(number), leaves[number].physical_type
            width = leaves[number].length if kind == "FIXED_LEN_BYTE_ARRAY" else _VALUE_BYTES.get(kind, 8)
            packed += chunk.total_compressed_size
            unpacked += chunk.total_uncompressed_size + width * chunk.num_values
        if unpacked > max(_CACHE_BYTES, _MOST_UNPACKED * packed):
            raise UserError(
                f"data.source: {path}: row group {group} unpacks {unpacked:,} bytes from {packed:,}; write the file "
                "anew with smaller row groups"
            )
    return [leaves[number].path for number in wanted if leaves[number].physical_type == "BYTE_ARRAY"]


def _unpacked_bytes(array: pa.Array | pa.ChunkedArray) -> int:
    """Bytes of an array with each text written out wherever it stands."""
    if isinstance(array, pa.ChunkedArray):
        return sum(map(_unpacked_bytes, array.chunks))
    if pa.types.is_dictionary(array.type):
        times = array.indices.drop_null().value_counts()
        lengths = pc.call_function("binary_length", [array.dictionary.take(times.field("values"))]).fill_null(0)
        return int(lengths.to_numpy().astype(np.int64) @ times.field("counts").to_numpy())
    if pa.types.is_map(array.type):
        first, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_unpacked_bytes(part.slice(first, end - first)) for part in (array.keys, array.items))
    if pa.types.is_nested(array.type):  # structs flatten to their fields, lists to their elements
        parts = array.flatten()
        return sum(map(_unpacked_bytes, parts if isinstance(parts, list) else [parts]))
    return array.nbytes


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
