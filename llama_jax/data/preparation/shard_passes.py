"""The work of `prepare` on one shard: its documents are examined, and become token ids or are left out for a reason.

What is written depends on the documents and the settings alone."""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from llama_jax.core.files import is_remote, write_whole
from llama_jax.data.preparation.job import Count, Job, Pass
from llama_jax.data.preparation.reading import Examined, examined, examined_again
from llama_jax.data.preparation.report.counting import ShardTally
from llama_jax.data.preparation.resuming import acknowledged, acknowledgement_path, examined_path
from llama_jax.data.sources.prepared import ShardWriter, id_dtype, shard_name


def examine_pass(job: Job) -> Pass:
    """Finds what becomes of each document by itself; only needed where there is a search for duplicates."""
    return _over_shards(job, "examining", _examine, examined_path)


def write_pass(job: Job) -> Pass:
    """Writes the shards."""
    return _over_shards(job, "writing", _write_examined if job.searches else _examine_and_write, acknowledgement_path)


def _over_shards(
    job: Job, title: str, work: Callable[[Job, int, Count], None], done: Callable[[epath.Path, int], epath.Path]
) -> Pass:
    documents = [len(job.documents_of(shard)) for shard in range(job.shards)]
    return Pass(title, work, documents, functools.partial(done, job.directory))


def _examine(job: Job, shard: int, count: Count) -> None:
    """Write what becomes of the documents of a shard, and the notes on those that no rule drops."""
    notes = [search.notes(job, shard) for search in job.searches]
    tally = ShardTally(job, shard, is_first=True, is_last=False)
    dropped, found = [], []
    documents = 0
    for each in examined(job, shard, count):
        tally.add(each)
        found += _findings(each)
        if each.dropped is not None:
            dropped.append({"document": each.document, **each.dropped})
            continue
        documents += 1
        for note in notes:
            note.add(each.document, each.text)
    for note in notes:
        note.write()
    tally.write()
    content = {"documents": documents, "dropped": dropped, "found": found}
    write_whole(examined_path(job.directory, shard), json.dumps(content))


def _examine_and_write(job: Job, shard: int, count: Count) -> None:
    """Write a shard and its acknowledgement."""
    _write(job, shard, examined(job, shard, count), _Known(), count)


def _write_examined(job: Job, shard: int, count: Count) -> None:
    """Write a shard that was examined, and its acknowledgement."""
    first = acknowledged(examined_path(job.directory, shard))
    dropped = {each["document"]: each for each in first.dropped}
    known = _Known(is_examined=True, dropped=dropped, found=first.found)
    _write(job, shard, examined_again(job, shard, dropped, count), known, count)


class _Known(NamedTuple):
    """What an earlier pass says of the documents of a shard."""

    is_examined: bool = False
    dropped: Mapping[int, Mapping[str, Any]] = {}
    found: Sequence[Mapping[str, Any]] = ()


def _write(job: Job, shard: int, documents: Iterable[Examined], known: _Known, count: Count) -> None:
    """Write a shard and its acknowledgement.

    Args:
        documents: Those of the shard of which an earlier pass does not know that they are dropped.
    """
    name = shard_name(shard, job.shards)
    dropped, found = dict(known.dropped), list(known.found)
    tally = ShardTally(job, shard, is_first=not known.is_examined, is_last=True)
    final = job.directory / name
    with _local_file(final) as path, ShardWriter(path, id_dtype(job.tokenizer.vocab_size)) as shard_file:
        for each in documents:
            tally.add(each)
            found += _findings(each)
            if each.dropped is not None:
                dropped[each.document] = {"document": each.document, **each.dropped}
                continue
            ids = job.tokenizer.encode_document(each.text)
            shard_file.write(ids, len(each.text.encode()))
            count(0, 0, len(ids))
        written = shard_file.finish(name)
        _move(path, final)
    tally.write()
    content = {"shard": asdict(written), "dropped": [dropped[document] for document in sorted(dropped)], "found": found}
    write_whole(acknowledgement_path(job.directory, shard), json.dumps(content))


def _findings(each: Examined) -> list[dict[str, Any]]:
    return [{"document": each.document, **found} for judgement in each.judgements for found in judgement.found]


@contextlib.contextmanager
def _local_file(path: epath.Path) -> Iterator[Path]:
    """A local file to write for a path that may be remote, in the same folder if it is not; removed if left over."""
    folder = tempfile.gettempdir() if is_remote(path) else os.fspath(path.parent)
    # Named for the process and thread: another that makes the same shard, since it was thought to be lost, must not
    # write into the same file.
    temporary = Path(folder) / f"{path.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_native_id()}.tmp"
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
