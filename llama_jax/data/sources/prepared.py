"""The prepared form of a corpus: the token ids of its documents in array_record files, beside a manifest.

    DIR/manifest.json                         what there is; written last, so a directory without it is unfinished
    DIR/shard-00000-of-00016.array_record …   one record a document: its ids, BOS and EOS included, little-endian
    DIR/tokenizer.model …                     the tokenizer that gave the ids
    DIR/dropped.jsonl                         one line for each document of the source that was left out
    DIR/report.html, report.json              what became of the text, for a person and as numbers
    DIR/found.jsonl                           one line for each thing that rules found, if any

Independent of text and of how the ids came about."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from llama_jax.core.arrays import Int
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote
from llama_jax.core.json_files import read_json, shown
from llama_jax.data.sources.array_records import READERS, open_reader
from llama_jax.data.sources.documents import BadRecordError, JoinedDocuments, read_one_by_one
from llama_jax.data.sources.file_bytes import check_count

FORMAT, VERSION = "llama_jax.prepared", 1
MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"
FOUND = "found.jsonl"
REPORT, PAGE = "report.json", "report.html"

_LARGEST_MANIFEST = 2**28  # bytes; a shard takes 250
_DTYPES = ("uint16", "uint32")
# Of a group of several records all would be read and decompressed for one of them; ids hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True)
class Shard:
    """One file of a prepared directory."""

    file: str
    """Its name within the directory."""
    documents: int
    tokens: int
    """BOS and EOS included."""
    text_bytes: int
    """Bytes in UTF-8 of the texts, as they were encoded."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file, in hexadecimal."""


@dataclass(frozen=True)
class Manifest:
    """What a prepared directory says about itself. Nothing in it depends on when, where or by how many processes the
    directory was written."""

    tokenizer: str
    """Fingerprint of the tokenizer."""
    vocab_size: int
    dtype: str
    """Type of an id in the files: `uint16` where the vocabulary fits, else `uint32`."""
    source: str
    """Identity of the documents that were prepared."""
    settings: Mapping[str, Any]
    """What else decided the ids."""
    source_documents: int
    """Documents of the source: those written and those dropped."""
    documents: int
    tokens: int
    text_bytes: int
    dropped: Mapping[str, int]
    """Documents left out, by reason."""
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def shard_name(number: int, count: int) -> str:
    """`shard-00003-of-00016.array_record`."""
    return f"shard-{number:05}-of-{count:05}.array_record"


def id_dtype(vocab_size: int) -> str:
    """The smallest type in which every id of the vocabulary fits."""
    return _DTYPES[vocab_size > 2**16]


def read_manifest(path: epath.PathLike) -> Manifest:
    """The manifest of a prepared directory.

    Raises:
        UserError: there is none, or it is broken or of another version.
    """
    file = epath.Path(path) / MANIFEST
    if not file.is_file():
        raise UserError(f"{path}: holds no {MANIFEST}; it is not a prepared directory, or not a finished one")
    values = read_json(file, max_bytes=_LARGEST_MANIFEST)
    found = values.get("format"), values.get("version")
    if found != (FORMAT, VERSION):
        raise UserError(f"{file}: has format {shown(found[0])} {shown(found[1])}; {FORMAT} {VERSION} is supported")
    shards = values.get("shards")
    if not isinstance(shards, list):
        raise UserError(f"{file}: shards is {shown(shards)}; a list is expected")
    checked = tuple(_shard(shard, f"{file}: shard {number}") for number, shard in enumerate(shards))
    manifest = Manifest(**_checked({**values, "shards": checked}, Manifest, str(file)))
    for name in ("documents", "tokens", "text_bytes"):
        if getattr(manifest, name) != sum(getattr(shard, name) for shard in checked):
            raise UserError(f"{file}: {name} is {getattr(manifest, name)}, which is not the sum over the shards")
    if manifest.dtype not in _DTYPES:
        raise UserError(f"{file}: dtype is {shown(manifest.dtype)}; {' or '.join(_DTYPES)} is expected")
    return manifest


def _shard(values: Any, where: str) -> Shard:
    if not isinstance(values, dict):
        raise UserError(f"{where}: is {shown(values)}; an object is expected")
    shard = Shard(**_checked(values, Shard, where))
    if Path(shard.file).name != shard.file:
        raise UserError(f"{where}: file is {shown(shard.file)}; a name without a folder is expected")
    return shard


def _checked(values: Mapping[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """The values of the fields of a dataclass, each of the type that the field has."""
    found = {field.name: values.get(field.name) for field in fields(kind)}
    for field in fields(kind):
        value = found[field.name]
        if field.type is int and not (type(value) is int and value >= 0):
            raise UserError(f"{where}: {field.name} is {shown(value)}; a whole number is expected")
        if field.type is str and not isinstance(value, str):
            raise UserError(f"{where}: {field.name} is {shown(value)}; text is expected")
        if get_origin(field.type) is Mapping and not isinstance(value, dict):
            raise UserError(f"{where}: {field.name} is {shown(value)}; an object is expected")
    return found


class ShardWriter:
    """Writes one shard to a local file. A context manager; the file is not valid until `finish` was called."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        self._documents = self._tokens = self._text_bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer.is_open():
            self._writer.close()

    def write(self, ids: Sequence[int], text_bytes: int) -> None:
        """Add a document.

        Args:
            ids: Its token ids, which the type of the shard must be able to hold.
            text_bytes: Bytes of its text, which are only counted.
        """
        self._writer.write(np.array(ids, self._dtype).tobytes())
        self._documents += 1
        self._tokens += len(ids)
        self._text_bytes += text_bytes

    def finish(self, name: str) -> Shard:
        """Write the file to disk and describe it; `name` is what it will be called."""
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._path.stat().st_size
        return Shard(name, self._documents, self._tokens, self._text_bytes, size, digest)


def open_prepared(path: epath.PathLike) -> "PreparedDocuments":
    """The documents of a prepared directory.

    Raises:
        UserError: the directory is not in the prepared form, or (where that is quick to check, on a local disk) a shard
            is missing or has another size than the manifest says.
    """
    directory, manifest = epath.Path(path), read_manifest(path)
    if not is_remote(directory):
        for shard in manifest.shards:
            _check_size(directory / shard.file, shard)
    return PreparedDocuments(directory, manifest)


def _check_size(path: epath.Path, shard: Shard) -> None:
    if not path.exists():
        raise UserError(f"{path}: is missing; copy it again, or prepare the directory again")
    if (size := path.stat().length) != shard.bytes:
        raise UserError(f"{path}: has {size} bytes, but {MANIFEST} says {shard.bytes}; copy it again")
    check_count(path, shard.documents, size)


class _ShardDocuments:
    """Token ids of the documents of one shard, which is opened when first asked for."""

    def __init__(self, directory: epath.Path, shard: Shard, dtype: np.dtype) -> None:
        self._path, self._shard, self._dtype = os.fspath(directory / shard.file), shard, dtype

    def __len__(self) -> int:
        return self._shard.documents

    def __getitem__(self, index: int) -> Int[np.ndarray, "ids"]:
        try:
            (record,) = self._reader().read([index])
        except (RuntimeError, ValueError):
            message = "its checksum does not match; copy the shard again"
            raise BadRecordError("damaged", f"{self._path} record {index}", message) from None
        return np.frombuffer(record, self._dtype).astype(np.int32)

    def read_many(self, indices: Sequence[int]) -> Sequence[Int[np.ndarray, "ids"] | BadRecordError]:
        """See `documents.read_many`: by one call, whose threads are several times as fast as one call a document."""
        try:
            records = self._reader().read(list(indices))
        except (RuntimeError, ValueError):
            records = []
        if len(records) < len(indices):
            return read_one_by_one(self, indices)
        return [np.frombuffer(record, self._dtype).astype(np.int32) for record in records]

    def identity(self) -> str:
        return f"{self._shard.documents} {self._shard.sha256}"

    def _reader(self) -> ArrayRecordReader:
        return READERS.get(self._path, self._open)

    def _open(self) -> ArrayRecordReader:
        _check_size(epath.Path(self._path), self._shard)
        try:
            reader = open_reader(self._path, parallel=True)
            documents = reader.num_records()  # a file that it cannot make sense of counts as empty
        except RuntimeError:
            reader, documents = None, 0
        if reader is None or documents != len(self):
            raise UserError(
                f"{self._path}: is damaged, its index lists {documents} documents, but {MANIFEST} says {len(self)}; "
                "copy it again, or prepare the directory again"
            )
        return reader


class PreparedDocuments(JoinedDocuments[np.ndarray]):
    """Token ids by number of the document, int32, BOS and EOS included.

    May be used from several threads, pickled, and used on both sides of a fork. A damaged record gives a
    BadRecordError, a damaged shard a UserError.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        super().__init__([_ShardDocuments(directory, shard, dtype) for shard in manifest.shards])

    def identity(self) -> str:
        digest = hashlib.sha256(self.manifest.tokenizer.encode())
        for part in self.parts:
            digest.update(f"\n{part.identity()}".encode())
        return f"prepared sha256:{digest.hexdigest()}"

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that gave the ids; the tokenizer itself is in `directory`, for `load_tokenizer`."""
        return self.manifest.tokenizer
