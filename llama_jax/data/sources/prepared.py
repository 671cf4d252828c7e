"""The prepared form of a corpus: the token ids of its documents in array_record files, beside a manifest.

    DIR/manifest.json                         what there is; written last, so a directory without it is unfinished
    DIR/shard-00000-of-00016.array_record …   one record a document: its ids, BOS and EOS included, little-endian
    DIR/tokenizer.model …                     the tokenizer that gave the ids
    DIR/dropped.jsonl                         one line for each document of the source that was left out

Knows nothing of text, and nothing of how the ids came about."""

import bisect
import hashlib
import itertools
import json
import os
import resource
import threading
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
from llama_jax.data.sources.documents import BadRecordError

FORMAT, VERSION = "llama_jax.prepared", 1
MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"

_LARGEST_MANIFEST = 2**28  # bytes; a shard takes 250
_DTYPES = ("uint16", "uint32")
# A group of several records would be read and decompressed whole for one of them; ids hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER = 2**15  # bytes


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
    """What a prepared directory says of itself. Nothing in it depends on when, where or by how many processes the
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
        raise UserError(f"{path}: holds no {MANIFEST}; it is not a prepared directory, or one that is not finished")
    values = read_json(file, max_bytes=_LARGEST_MANIFEST)
    found = values.get("format"), values.get("version")
    if found != (FORMAT, VERSION):
        raise UserError(f"{file}: is of format {shown(found[0])} {shown(found[1])}; {FORMAT} {VERSION} is read here")
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
    """Writes one shard to a local file. A context manager; the file counts for nothing until `finish` was called."""

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
        """Bring the file to disk and describe it; `name` is what it will be called."""
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._path.stat().st_size
        return Shard(name, self._documents, self._tokens, self._text_bytes, size, digest)


def open_prepared(path: epath.PathLike) -> "PreparedDocuments":
    """The documents of a prepared directory.

    Raises:
        UserError: the directory is not in the prepared form, or (where that is quick to tell, on a local disk) a shard
            is missing or has another size than the manifest says.
    """
    directory, manifest = epath.Path(path), read_manifest(path)
    if not is_remote(directory):
        for shard in manifest.shards:
            _check_size(directory / shard.file, shard)
    return PreparedDocuments(directory, manifest)


def _check_size(path: epath.Path, shard: Shard) -> None:
    if not path.exists():
        raise UserError(f"{path}: is missing; copy it again, or prepare the directory anew")
    if (size := path.stat().length) != shard.bytes:
        raise UserError(f"{path}: has {size} bytes where {MANIFEST} says {shard.bytes}; copy it again")


class PreparedDocuments:
    """Token ids by number of the document. Shards are opened when first asked for.

    May be used from several threads, pickled, and used on both sides of a fork.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._ends = list(itertools.accumulate(shard.documents for shard in manifest.shards))
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._forget_readers()

    def __len__(self) -> int:
        return self.manifest.documents

    def __getitem__(self, index: int) -> Int[np.ndarray, "ids"]:
        """The ids of a document, int32, BOS and EOS included.

        Raises:
            BadRecordError: its record is damaged.
            UserError: its shard is.
        """
        number, within = self._place(index)
        try:
            (record,) = self._reader(number).read([within])
        except (RuntimeError, ValueError):
            raise self._damaged(number, within) from None
        return np.frombuffer(record, self._dtype).astype(np.int32)

    def read_many(self, indices: Sequence[int]) -> list[Int[np.ndarray, "ids"] | BadRecordError]:
        """Several documents at once, several times as fast as one by one: each shard is asked once, and reads with its
        own threads.

        Returns:
            The ids of each, in the order of `indices`; for a damaged record the error that `__getitem__` would raise.
        """
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, index in enumerate(indices):
            number, within = self._place(index)
            wanted.setdefault(number, []).append((place, within))
        found: list[Any] = [None] * len(indices)
        for number, pairs in wanted.items():
            try:
                records = self._reader(number).read([within for _, within in pairs])
            except (RuntimeError, ValueError):
                records = []
            if len(records) == len(pairs):
                for (place, _), record in zip(pairs, records, strict=True):
                    found[place] = np.frombuffer(record, self._dtype).astype(np.int32)
                continue
            for place, _ in pairs:
                try:
                    found[place] = self[indices[place]]
                except BadRecordError as error:
                    found[place] = error
        return found

    def identity(self) -> str:
        digest = hashlib.sha256(self.manifest.tokenizer.encode())
        for shard in self.manifest.shards:
            digest.update(f"\n{shard.documents} {shard.sha256}".encode())
        return f"prepared sha256:{digest.hexdigest()}"

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that gave the ids; the tokenizer itself is in `directory`, for `load_tokenizer`."""
        return self.manifest.tokenizer

    @property
    def tokens(self) -> int:
        """Tokens of all documents, BOS and EOS included."""
        return self.manifest.tokens

    @property
    def text_bytes(self) -> int:
        """Bytes of the texts of all documents."""
        return self.manifest.text_bytes

    def _place(self, index: int) -> tuple[int, int]:
        """Shard of a document and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return number, int(index) - (self._ends[number] - self.manifest.shards[number].documents)

    def _reader(self, number: int) -> ArrayRecordReader:
        if self._process != os.getpid():
            self._forget_readers()  # the threads of the parent's readers did not come along
        reader = self._readers.get(number)
        return self._opened(number) if reader is None else reader

    def _opened(self, number: int) -> ArrayRecordReader:
        with self._lock:
            if number in self._readers:
                return self._readers[number]
            shard = self.manifest.shards[number]
            path = self.directory / shard.file
            _check_size(path, shard)
            try:
                reader = ArrayRecordReader(
                    os.fspath(path), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
                )
                documents = reader.num_records()  # a file that it cannot make sense of counts as empty
            except RuntimeError:
                reader, documents = None, 0
            if reader is None or documents != shard.documents:
                raise UserError(
                    f"{path}: is damaged, its index tells of {documents} documents where {MANIFEST} says "
                    f"{shard.documents}; copy it again, or prepare the directory anew"
                )
            while len(self._readers) >= self._most_readers:
                del self._readers[next(iter(self._readers))]  # not closed: another thread may be reading
            self._readers[number] = reader
            return reader

    def _damaged(self, number: int, within: int) -> BadRecordError:
        where = f"{self.directory / self.manifest.shards[number].file} record {within}"
        return BadRecordError("damaged", where, "its checksum does not fit; copy the shard again")

    def _forget_readers(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._readers: dict[int, Any] = {}
        # A reader holds its file open: leave half of what the process may open to others.
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_readers = 2**16 if open_files == resource.RLIM_INFINITY else max(8, open_files // 2)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedDocuments, (self.directory, self.manifest)
