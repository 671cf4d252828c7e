"""array_record files: records by number, and as documents."""

import functools
import resource
from collections.abc import Collection
from typing import TypeVar

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from llama_jax.data.sources.documents import BadRecordError, ParsedRows
from llama_jax.data.sources.file_bytes import ProcessCache, check_count, sampled_digest, unreadable
from llama_jax.data.sources.record_text import MAX_RECORD_BYTES, RecordParser, too_long

_BUFFER_BYTES = 32 * 1024
_DAMAGE = ("Corrupted", "Invalid")

_T = TypeVar("_T")


def _too_many_open(readers: Collection[ArrayRecordReader]) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # Half of the files that the process may open are left to others.
    return len(readers) > (2**16 if limit == resource.RLIM_INFINITY else max(8, limit // 2))


READERS = ProcessCache(_too_many_open)
"""Each holds a file open and 8 bytes a record, may be used by several threads at once, and is closed when the last of
them lets go of it."""


def open_reader(path: str, *, parallel: bool = False) -> ArrayRecordReader:
    """A reader of records at random; `parallel`: one call for several records reads them with threads of its own."""
    options = "readahead_buffer_size:0" + ",max_parallelism:0" * (not parallel)
    return ArrayRecordReader(path, options=options, file_reader_buffer_size=_BUFFER_BYTES)


class ArrayRecordFile:
    """The records of an array_record file.

    Args:
        path: The file, which may be in a bucket.

    Raises:
        UserError: the file cannot be read, is not an array_record file or was cut short.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        reader = open_reader(str(path))
        if not reader.ok():
            try:
                reader.close()  # the only way to ask what is wrong
            except RuntimeError as error:
                raise unreadable(path, error) from None
        self._count = reader.num_records()
        reader.close()
        check_count(path, self._count, path.stat().length)
        self._digest = sampled_digest(path)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        """A record, counted from 0.

        Raises:
            BadRecordError: the bytes that hold it are damaged.
        """
        path = str(self._path)
        try:
            return READERS.get(path, lambda: open_reader(path)).read([index])[0]
        except RuntimeError as error:
            message = str(error).strip().splitlines()[0]
            if not message.startswith(_DAMAGE):
                raise
            raise BadRecordError("damaged", f"{self._path} record {index}", message) from None

    def identity(self) -> str:
        """SHA-256 of the length of the file and of its first and last 128 KiB. Whatever changes the number or the size
        of records is seen; bytes changed within the bulk of a file, with all sizes kept, are not."""
        return self._digest


def open_array_record(path: epath.Path, parser: RecordParser[_T]) -> ParsedRows[_T]:
    """The documents of an array_record file. Each record is UTF-8 text or a JSON object; what starts like an object
    (with `{"`) is read as one.

    Raises:
        UserError: as `ArrayRecordFile` has it.
    """
    return ParsedRows(ArrayRecordFile(path), functools.partial(_parsed, parser), f"{path} record")


def _parsed(parser: RecordParser[_T], content: bytes, where: str) -> _T:
    if len(content) > MAX_RECORD_BYTES:
        raise too_long(len(content), where)
    if content.lstrip()[:1] == b"{" and content.lstrip()[1:].lstrip()[:1] in (b'"', b"}"):
        return parser.of_json(content, where)
    if _is_tf_example(content):
        message = "a tf.train.Example; open the data set it is from as tfds:NAME or tfds:DIRECTORY"
        raise BadRecordError("tf_example", where, message)
    return parser.of_text(content, where)


def _is_tf_example(content: bytes) -> bool:
    """Whether a record is one protocol buffer message of length-delimited field 1 from its first byte to its last, as
    tf.train.Example is, and a text only by chance."""
    if content[:1] != b"\n":
        return False
    length = 0
    for number, byte in enumerate(content[1:6]):
        length |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:
            return length > 0 and length == len(content) - number - 2
    return False
