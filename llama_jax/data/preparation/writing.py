"""From a job to a prepared directory: duplicates are found, shards written, bad records counted, the manifest written.

Knows the order of the work and what is shown of it, not how a shard is written."""

import functools
import io
import json
import os
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.files import is_remote, replacing, write_whole
from llama_jax.core.processes.signals import StopSignal
from llama_jax.core.recording.terminal import LiveLine
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.duplicates import NO_DUPLICATES, Duplicates, duplicates_of
from llama_jax.data.preparation.resuming import Plan, acknowledged, acknowledgement_path, hashes_path
from llama_jax.data.preparation.shards import Job
from llama_jax.data.preparation.workers import Meter, Workers
from llama_jax.data.sources.bad_records import BadRecords, counted
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.prepared import DROPPED, MANIFEST, Manifest, Shard, id_dtype

_COMPARED_CHUNK = 2**23  # documents, a third of a gigabyte
_SECONDS_BETWEEN_LINES = 10.0
_say = functools.partial(print, flush=True)


def write_shards(config: PrepareConfig, job: Job, stop: StopSignal) -> None:
    """Everything that is done document by document; shards that are acknowledged already are kept.

    Raises:
        SavedAfterSignal: it was asked to stop; what is whole is kept.
        UserError: too many records are bad.
    """
    missing = [number for number in range(job.shards) if not acknowledgement_path(job.directory, number).exists()]
    bad = BadRecords(config.data.source, config.data.bad_records, config.data.max_bad_fraction)
    for number in sorted(set(range(job.shards)) - set(missing)):
        _note_bad_records(job, number, bad)
    if not missing:
        return
    count = (os.cpu_count() or 1) if config.workers is None else config.workers
    meter = Meter()
    # One process more would start up for longer than it takes to write a single shard.
    count = 0 if len(missing) == 1 and config.workers is None else min(count, len(missing))
    with Workers(job, count, meter) as workers:
        duplicates = _find_duplicates(job, workers, meter, stop) if config.deduplicate else NO_DUPLICATES
        with _Progress("writing", job, missing, meter, stop) as progress:
            for number in workers.write_shards(missing, duplicates, progress.tick):
                _note_bad_records(job, number, bad)


def _find_duplicates(job: Job, workers: Workers, meter: Meter, stop: StopSignal) -> Duplicates:
    numbers = range(job.shards)
    missing = [number for number in numbers if not hashes_path(job.directory, number).exists()]
    with _Progress("comparing", job, missing, meter, stop) as progress:
        for _ in workers.hash_shards(missing, progress.tick):
            pass

    def load(number: int) -> np.ndarray:
        return np.load(io.BytesIO(hashes_path(job.directory, number).read_bytes()))

    duplicates = duplicates_of([functools.partial(load, number) for number in numbers], _COMPARED_CHUNK)
    _say(f"{len(duplicates.documents):,} documents are the same as an earlier one")
    return duplicates


def _note_bad_records(job: Job, number: int, bad: BadRecords) -> None:
    """Count the records of one more shard that could not be used; ends the work when they are too many."""
    for each in acknowledged(job.directory, number).bad:
        bad.note(BadRecordError(each["reason"], each["where"], each["message"]))
    bad.check(len(job.documents))


class _Progress:
    """What is done, how fast, and how long the rest will take. A context manager, whose end is shown unless it is an
    error."""

    def __init__(self, what: str, job: Job, numbers: Sequence[int], meter: Meter, stop: StopSignal) -> None:
        self._what, self._meter, self._stop = what, meter, stop
        self._total = len(job.documents)
        self._before = self._total - sum(job.bounds[number + 1] - job.bounds[number] for number in numbers)
        self._first = meter.read()
        self._started = time.monotonic()
        self._shown = LiveLine(_say, seconds_between_lines=_SECONDS_BETWEEN_LINES)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._shown.close(self._line() if kind is None else None)

    def tick(self) -> None:
        """Show a newer line, if it is time for one.

        Raises:
            SavedAfterSignal: a signal asked to stop.
        """
        if self._stop.received:
            raise SavedAfterSignal("interrupted: finished shards are kept; run the same command to resume")
        self._shown.update(self._line)

    def _line(self) -> str:
        documents, text_bytes, tokens = (
            now - first for now, first in zip(self._meter.read(), self._first, strict=True)
        )
        seconds = max(1e-9, time.monotonic() - self._started)
        done = self._before + documents
        line = (
            f"{self._what}: {done:,} of {self._total:,} documents ({100 * done / self._total:.0f}%), "
            f"{documents / seconds:,.0f} documents/s, {text_bytes / seconds / 1e6:.1f} MB/s"
        )
        if tokens:
            line += f", {tokens / seconds:,.0f} tokens/s"
        if documents and done < self._total:
            line += f", {seconds / documents * (self._total - done):,.0f} s left"
        return line


def write_manifest(config: PrepareConfig, job: Job, plan: Plan) -> Manifest:
    """Write which documents were dropped and then the manifest, with which the directory is finished.

    Raises:
        UserError: no document is left.
    """
    reasons: Counter[str] = Counter()
    shards: list[Shard] = []
    path = job.directory / DROPPED
    with path.open("wb") if is_remote(path) else replacing(path) as file:
        for number in range(job.shards):
            shard, dropped = acknowledged(job.directory, number)
            shards.append(shard)
            reasons.update(each["reason"] for each in dropped)
            file.writelines(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in dropped)
    manifest = Manifest(
        tokenizer=plan.tokenizer,
        vocab_size=job.tokenizer.vocab_size,
        dtype=id_dtype(job.tokenizer.vocab_size),
        source=plan.source,
        settings=plan.settings,
        source_documents=len(job.documents),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        dropped=dict(sorted(reasons.items())),
        shards=tuple(shards),
    )
    if manifest.documents == 0:
        raise UserError(f"--output {config.output}: no document is left: {counted(manifest.dropped)}")
    write_whole(job.directory / MANIFEST, manifest.to_json())
    return manifest


def described(manifest: Manifest) -> str:
    """A prepared directory in one line."""
    shards = len(manifest.shards)
    line = (
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.text_bytes:,} bytes of text "
        f"({manifest.text_bytes / max(1, manifest.tokens):.2f} a token) in {shards} shard{'s' * (shards > 1)}"
    )
    return (
        f"{line}; dropped {counted(manifest.dropped)}, see {DROPPED}" if manifest.dropped else f"{line}; none dropped"
    )
