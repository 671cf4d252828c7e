"""The work of `prepare` on one shard: documents of a consecutive range become token ids, or are left out for a reason.

What is written depends on the documents and the settings alone. Independent of processes and of the command line."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote, write_whole
from llama_jax.data.preparation.cleaning import Cleaning, cleaned, text_hash
from llama_jax.data.preparation.duplicates import Duplicates
from llama_jax.data.preparation.resuming import acknowledgement_path, hashes_path
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError, Documents, in_order
from llama_jax.data.sources.prepared import ShardWriter, id_dtype, shard_name
from llama_jax.data.tokenizers import Tokenizer

_SAMPLED_DOCUMENTS = 1000
_COUNTED_DOCUMENTS = 32  # between two looks at what the processes share


@dataclass(frozen=True)
class Job:
    """What every process needs. Pickled once for each."""

    documents: Documents
    tokenizer: Tokenizer
    cleaning: Cleaning
    bounds: Sequence[int]
    """Number of the first document of each shard, and of the document after the last."""
    directory: epath.Path
    fail_on_bad: bool
    """A bad record ends the work instead of being left out."""

    @property
    def shards(self) -> int:
        return len(self.bounds) - 1


def shard_bounds(documents: Documents, megabytes: float) -> list[int]:
    """Cut the documents into consecutive ranges of about `megabytes` of text, estimated from a thousand documents."""
    count = len(documents)
    sizes = []
    for index in np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_DOCUMENTS)).astype(np.int64)):
        try:
            sizes.append(len(as_text(documents[int(index)]).encode()))
        except (BadRecordError, UnicodeEncodeError):
            continue
    shards = -(-count * (sum(sizes) / max(1, len(sizes))) // (megabytes * 1e6))
    shards = min(count, max(1, int(shards)))
    return [count * number // shards for number in range(shards + 1)]


def as_text(document: Any) -> str:
    """The document, which must be a text.

    Raises:
        BadRecordError: it is this error.
        UserError: it is one of token ids.
    """
    if isinstance(document, BadRecordError):
        raise document
    if not isinstance(document, str):
        raise UserError("data.source: holds token ids; it has been prepared already, and prepare takes text")
    return document


def sampled_texts(documents: Documents, max_bytes: int) -> Iterator[str]:
    """Documents from all over the source, at most `max_bytes` of them.

    Raises:
        UserError: none can be used.
    """
    count = len(documents)
    left, bad = max_bytes, BadRecords("data.source", "skip", 1.0)
    # A step that shares no factor with the count comes to each document once, far apart at first.
    step = next(step for step in range(max(1, round(count * 0.618)), count + 2) if np.gcd(step, count) == 1)
    for number in range(count):
        try:
            text = as_text(documents[number * step % count])
        except BadRecordError as error:
            bad.note(error)
            continue
        left -= len(text.encode())
        if left < 0:
            return
        yield text
    bad.check(count)


class ShardWork:
    """The work on one shard after another, within one process.

    Args:
        count: Called with the documents, bytes of text and tokens done since its last call; may raise, to stop.
    """

    def __init__(self, job: Job, count: Callable[[int, int, int], None]) -> None:
        self._job = job
        self._count = count

    def hash_shard(self, number: int) -> int:
        """Write the hashes of a shard's documents, zeros for those that cannot be used."""
        start, stop = self._job.bounds[number], self._job.bounds[number + 1]
        hashes = bytearray()
        for _, text, bad in self._texts(start, stop, self._job.cleaning):
            hashes += bytes(16) if bad else text_hash(text)
        stored = io.BytesIO()
        np.save(stored, np.frombuffer(hashes, "<u8").reshape(-1, 2))
        write_whole(hashes_path(self._job.directory, number), stored.getvalue())
        return number

    def write_shard(self, number: int, duplicates: Duplicates) -> int:
        """Write a shard and its acknowledgement."""
        job = self._job
        name = shard_name(number, job.shards)
        first = dict(zip(duplicates.documents.tolist(), duplicates.first.tolist(), strict=True))
        dropped: list[dict[str, Any]] = []
        final = job.directory / name
        with _local_file(final) as path, ShardWriter(path, id_dtype(job.tokenizer.vocab_size)) as shard_file:
            for index, text, bad in self._texts(job.bounds[number], job.bounds[number + 1], job.cleaning, first):
                if bad is not None:
                    dropped.append({"document": index, **bad})
                    continue
                ids = job.tokenizer.encode_document(text)
                shard_file.write(ids, len(text.encode()))
                self._tokens += len(ids)
            shard = shard_file.finish(name)
            _move(path, final)
        content = json.dumps({"shard": asdict(shard), "dropped": dropped}, ensure_ascii=False)
        write_whole(acknowledgement_path(job.directory, number), content)
        return number

    def _texts(
        self, start: int, stop: int, cleaning: Cleaning, first: dict[int, int] | None = None
    ) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
        """(number, clean text, why it is left out) of each document; counts what passes.

        Args:
            first: For the numbers of documents to leave out as duplicates, what they are the same as.
        """
        documents = text_bytes = self._tokens = 0
        for index, document in enumerate(in_order(self._job.documents, start, stop), start):
            text, bad = "", None
            try:
                text = cleaned(as_text(document))
                text_bytes += len(text.encode())
                if reason := cleaning.reason_to_drop(text):
                    bad = {"reason": reason, "characters": len(text)}
                elif first and index in first:
                    bad = {"reason": "duplicate", "of": first[index]}
            except BadRecordError as error:
                bad = self._bad(error)
            except UnicodeEncodeError as error:
                message = f"holds an unpaired surrogate at character {error.start}"
                bad = self._bad(BadRecordError("surrogate", f"document {index}", message))
            yield index, text, bad
            documents += 1
            if documents == _COUNTED_DOCUMENTS or index == stop - 1:
                self._count(documents, text_bytes, self._tokens)
                documents = text_bytes = self._tokens = 0

    def _bad(self, error: BadRecordError) -> dict[str, Any]:
        if self._job.fail_on_bad:
            raise UserError(f"{error} (data.bad_records: skip leaves such documents out)") from None
        return {"reason": error.reason, "where": error.where, "message": error.message}


@contextlib.contextmanager
def _local_file(path: epath.Path) -> Iterator[Path]:
    """A local file to write for a path that may be remote, in the same folder if it is not; removed if left over."""
    folder = tempfile.gettempdir() if is_remote(path) else os.fspath(path.parent)
    # Named for the process: one that outlives its parent for a moment must not write into another's file.
    temporary = Path(folder) / f"{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _move(path: Path, target: epath.Path) -> None:
    if not is_remote(target):
        path.replace(target)
        return
    with path.open("rb") as source, target.open("wb") as copy:  # an object appears when its upload is complete
        shutil.copyfileobj(source, copy, 2**24)
