"""Where documents and records come from: what `data.source` may name, and who reads it. Reads no format itself."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from etils import epath

from llama_jax.core.errors import UserError, nearest
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import (
    BadRecordError,
    Documents,
    JoinedDocuments,
    ParsedRows,
    RecordSource,
    TextDocuments,
    read_one_by_one,
)
from llama_jax.data.sources.file_bytes import COMPRESSED_SUFFIXES
from llama_jax.data.sources.manners import manners
from llama_jax.data.sources.record_files import LineFile, open_json
from llama_jax.data.sources.record_text import Record, RecordParser, TextField, WholeRecord
from llama_jax.data.sources.sums import careless_sums, sums
from llama_jax.data.sources.text_files import TextFile

_FILE_THREADS = 16
_TEXT_SUFFIXES = (".txt", ".md")
MANNERS = "manners"
_MADE = {"sums": sums, "careless_sums": careless_sums, MANNERS: manners}
"""Records that come with llama_jax."""
_SUFFIXES = (*_TEXT_SUFFIXES, ".jsonl", ".json", ".parquet", ".array_record")

_T = TypeVar("_T")


class FileDocuments(JoinedDocuments[_T]):
    """The documents of several files, one file after the other.

    Args:
        files: (name, documents) of each. The name is the path below the directory that was named: with the identity of
            the documents it makes the identity of the whole, so a corpus may be moved.
        read_as: What is read of records, for the identity; None where no file holds records.
    """

    def __init__(self, files: Sequence[tuple[str, RecordSource[_T]]], read_as: str | None) -> None:
        super().__init__([documents for _, documents in files])
        self._names = [name for name, _ in files]
        self._read_as = read_as

    def named_parts(self) -> list[tuple[str, int]]:
        """Name of each file and the number of its documents, in their order."""
        return [(name, len(documents)) for name, documents in zip(self._names, self.parts, strict=True)]

    def identity(self) -> str:
        digest = hashlib.sha256()
        for name, documents in zip(self._names, self.parts, strict=True):
            digest.update(f"{name}\0{documents.identity()}\n".encode(errors="surrogateescape"))
        if self._read_as is not None:
            digest.update(self._read_as.encode())
        return f"files sha256:{digest.hexdigest()}"


def open_source(source: str, text_field: str = "text") -> Documents:
    """The documents that a source names.

    Args:
        source: `pydoc`: the documentation of Python's standard library. `tfds:...` or `hf:...`: a data set by name; see
            `open_tfds` and `open_hugging_face`. A directory that `prepare` wrote. Or files, as a path, a glob, or a
            directory with all below it: .txt and .md are cut into documents of at most 16 KiB; each line of .jsonl,
            element of .json, row of .parquet and record of .array_record is one.
        text_field: The field, or column, that holds the text of a record.

    Raises:
        UserError: nothing is found, a file has an unsupported extension or cannot be read, or there is no text.
    """
    if source == "pydoc":
        from llama_jax.data.sources.standard_library import standard_library_documents

        return TextDocuments(standard_library_documents())
    if _is_prepared(directory := epath.Path(source).expanduser()):
        from llama_jax.data.sources.prepared import open_prepared

        return open_prepared(directory)
    return _open_named(source, TextField(text_field))


def open_records(source: str) -> RecordSource[Record]:
    """The records that a source names, with all their fields.

    Args:
        source: As for `open_source`, but for directories that `prepare` wrote. `sums`, `careless_sums`, `manners`: see
            those modules. A text becomes a record with the field `text`.

    Raises:
        UserError: nothing is found, a file has an unsupported extension or cannot be read, or there is no record.
    """
    if source == "pydoc":
        return _as_records(open_source(source))
    if source in _MADE:
        return _MADE[source]()
    if not source.startswith(("tfds:", "hf:")) and _is_prepared(epath.Path(source).expanduser()):
        raise UserError(f"data.source: {source} holds token ids that `prepare` wrote; name the records it read")
    return _open_named(source, WholeRecord())


def read_records(source: str, bad: BadRecords, setting: str = "--data") -> list[Record]:
    """All records of a source that can be used.

    Args:
        source: As for `open_records`; a data set of tensorflow-datasets with its split.
        bad: Where the others are noted.
        setting: The setting that named the source, for messages.

    Raises:
        UserError: as `open_records` has it, or too many records are bad.
    """
    with errors_of(setting):
        if source.startswith("tfds:"):
            from llama_jax.data.sources.named_data_sets import check_has_split

            check_has_split(source)
        records = open_records(source)
        found: list[Record] = []
        for record in read_one_by_one(records, range(len(records))):
            try:
                found.append(_unicode_record(record))
            except BadRecordError as error:
                bad.note(error)
        bad.check(len(records), "records")
    return found


def _unicode_record(record: Record | BadRecordError) -> Record:
    if isinstance(record, BadRecordError):
        raise record
    try:
        json.dumps(record.values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        message = "holds an unpaired surrogate, which is not valid text"
        raise BadRecordError("surrogate", record.place, message) from None
    return record


@contextlib.contextmanager
def errors_of(setting: str, *, instead_of: str = "data.source") -> Iterator[None]:
    """Errors of one setting as those of another."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(instead_of, setting, 1)) from None


def check_source(source: str, setting: str) -> None:
    """Refuse a source of which nothing is there, without a look at all there is; see `open_source`.

    Args:
        setting: The setting that named it, for the message.

    Raises:
        UserError: nothing is there, or a file is not of a kind that can be read.
    """
    is_named = source == "pydoc" or source in _MADE or source.startswith(("tfds:", "hf:"))
    if not is_named and not epath.Path(source).expanduser().is_dir():
        with errors_of(setting):
            _files_of(source)


def _as_records(documents: RecordSource[Any]) -> RecordSource[Record]:
    return ParsedRows(documents, lambda text, where: Record(where, {"text": text}), "document")


def _open_named(source: str, parser: RecordParser[_T]) -> RecordSource[_T]:
    if source.startswith(("tfds:", "hf:")):
        from llama_jax.data.sources.named_data_sets import open_hugging_face, open_tfds

        documents = (open_tfds if source.startswith("tfds:") else open_hugging_face)(source, parser)
        if not len(documents):
            raise UserError(f"data.source: no text in {source}")
        return documents
    files = _files_of(source)
    with ThreadPoolExecutor(_FILE_THREADS) as threads:
        opened = list(threads.map(functools.partial(_open_file, parser=parser), (file for _, file in files)))
    has_records = any(file.suffix.lower() not in _TEXT_SUFFIXES for _, file in files)
    documents = FileDocuments(
        [(name, documents) for (name, _), documents in zip(files, opened, strict=True)],
        (parser.field or "records") if has_records else None,
    )
    if not len(documents):
        raise UserError(f"data.source: no text in {source} ({len(files)} files)")
    return documents


def _open_file(path: epath.Path, parser: RecordParser[Any]) -> RecordSource[Any]:
    """Libraries are imported only by those who have files of their kind."""
    suffix = path.suffix.lower()
    if suffix in _TEXT_SUFFIXES:
        return TextFile(path) if parser.field is not None else _as_records(TextFile(path))
    if suffix == ".parquet":
        from llama_jax.data.sources.parquet_files import open_parquet

        return open_parquet(path, parser)
    if suffix == ".array_record":
        from llama_jax.data.sources.array_records import open_array_record

        return open_array_record(path, parser)
    return (LineFile if suffix == ".jsonl" else open_json)(path, parser)


def _is_prepared(directory: epath.Path) -> bool:
    """Whether `prepare` wrote the directory; a corpus may hold a manifest.json of another kind."""
    if not (manifest := directory / "manifest.json").is_file():
        if (directory / "progress" / "plan.json").is_file():
            raise UserError(f"data.source: {directory} is not finished; run the `prepare` that writes it again")
        return False
    with manifest.open("rb") as file:
        return b'"llama_jax.prepared"' in file.read(2**16)


def _files_of(source: str) -> list[tuple[str, epath.Path]]:
    """(name below the directory named, path) of each file, in the order of the names; hidden files are skipped."""
    path = epath.Path(source).expanduser()
    if path.is_dir():
        if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
            raise UserError(f"data.source: {source} is a data set of tensorflow-datasets; write tfds:{source}")
        files = [(name, file) for name, file in _below(path) if _kind(file) in _SUFFIXES]
        if not files:
            raise UserError(f"data.source: no {', '.join(_SUFFIXES)} file below the directory {source}")
    elif path.exists():
        files = [(path.name, path)]
    elif wildcards := [number for number, part in enumerate(path.parts) if set(part) & set("*?[")]:
        root, pattern = epath.Path(*path.parts[: wildcards[0]]), "/".join(path.parts[wildcards[0] :])
        if "**" in pattern:
            raise UserError(f"data.source: ** is not understood in {source}; name the directory to take all below it")
        files = [(file.relative_to(root).as_posix(), file) for file in root.glob(pattern) if file.is_file()]
        files = [(name, file) for name, file in files if not file.name.startswith(".")]
        if not files:
            raise UserError(f"data.source: nothing matches {source}")
    else:
        raise UserError(f"data.source: no file or directory {source}{nearest(source, ['pydoc', 'tfds:', 'hf:'])}")
    for _, file in files:
        _refuse_unknown(file)
    return sorted(files)


def _kind(path: epath.Path) -> str:
    """The suffix that says what a file is, before one that says how it is compressed."""
    is_compressed = path.suffix.lower() in COMPRESSED_SUFFIXES
    return epath.Path(path.stem).suffix.lower() if is_compressed else path.suffix.lower()


def _refuse_unknown(path: epath.Path) -> None:
    if path.suffix.lower() in COMPRESSED_SUFFIXES and _kind(path) in _SUFFIXES:
        raise UserError(f"data.source: {path} is compressed; unpack it, as documents are read at random")
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"data.source: {path} has an unsupported extension; use {', '.join(_SUFFIXES)}")


def _below(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path
