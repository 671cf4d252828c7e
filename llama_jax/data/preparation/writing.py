"""From a job to a prepared directory: duplicates are found, shards written, bad records counted, the manifest written.

Knows the order of the work and what is shown of it, not how a shard is written."""

import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.files import is_remote, replacing, write_whole
from llama_jax.core.processes.signals import StopSignal
from llama_jax.core.recording.terminal import LiveLine
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import Job, Pass, Runner
from llama_jax.data.preparation.report.asked import asked_of
from llama_jax.data.preparation.report.counting import summing_passes, tally_of
from llama_jax.data.preparation.report.funnel import Funnel
from llama_jax.data.preparation.report.writing import write_report
from llama_jax.data.preparation.resuming import Acknowledged, Plan, acknowledged, acknowledgement_path, all_acknowledged
from llama_jax.data.preparation.shard_passes import examine_pass, write_pass
from llama_jax.data.sources.bad_records import BadRecords, counted
from llama_jax.data.sources.documents import BadRecordError
from llama_jax.data.sources.prepared import DROPPED, FOUND, MANIFEST, Manifest, Shard, id_dtype

_SECONDS_BETWEEN_LINES = 10.0
_say = functools.partial(print, flush=True)


def write_shards(config: PrepareConfig, job: Job, runner: Runner, stop: StopSignal) -> None:
    """Make all passes; what is made already is kept.

    Raises:
        SavedAfterSignal: it was asked to stop; what is whole is kept.
        UserError: too many records are bad.
    """
    bad = BadRecords(config.data.source, config.data.bad_records, config.data.max_bad_fraction)
    written = write_pass(job)
    first = examine_pass(job) if job.searches else written
    there = sorted(set(range(job.shards)).difference(first.missing()))
    for known in all_acknowledged([first.done(number) for number in there]):
        _note_bad_records(job, known, bad)
    with runner:
        for number in _made(first, runner, stop):
            _note_bad_records(job, acknowledged(first.done(number)), bad)
        for search in job.searches:
            for task in search.passes(job):
                for _ in _made(task, runner, stop):
                    pass
            _say(search.summary(job))
        for task in (written, *summing_passes(job)):
            for _ in _made(task, runner, stop):
                pass


def _made(task: Pass, runner: Runner, stop: StopSignal) -> Iterator[int]:
    """Make what is missing of a pass; gives the number of each element."""
    if missing := task.missing():
        with _Progress(task, missing, stop) as progress:
            yield from runner.made(task, missing, progress)


def _note_bad_records(job: Job, known: Acknowledged, bad: BadRecords) -> None:
    """Count the records of one more shard that could not be used; ends the work when they are too many."""
    for each in known.bad:
        bad.note(BadRecordError(each["reason"], each["where"], each["message"]))
    bad.check(len(job.documents))


class _Progress:
    """What is done, how fast, and how long the rest will take. A context manager, whose end is shown unless it is an
    error."""

    def __init__(self, task: Pass, missing: Sequence[int], stop: StopSignal) -> None:
        self._task, self._stop = task, stop
        self._total = sum(task.amounts)
        self._before = self._total - sum(task.amounts[number] for number in missing)
        self._counts = [0, 0, 0]
        self._started = time.monotonic()
        self._shown = LiveLine(_say, seconds_between_lines=_SECONDS_BETWEEN_LINES)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._shown.close(self._line() if kind is None else None)

    def count(self, documents: int, text_bytes: int, tokens: int) -> None:
        """See `Progress`."""
        for place, amount in enumerate((documents, text_bytes, tokens)):
            self._counts[place] += amount

    def tick(self) -> None:
        """Show a newer line, if it is time for one.

        Raises:
            SavedAfterSignal: a signal asked to stop.
        """
        if self._stop.received:
            raise SavedAfterSignal("interrupted: finished shards are kept; run the same command to resume")
        self._shown.update(self._line)

    def _line(self) -> str:
        documents, text_bytes, tokens = self._counts
        seconds = max(1e-9, time.monotonic() - self._started)
        done, unit = self._before + documents, self._task.unit
        line = f"{self._task.title}: {done:,} of {self._total:,} {unit} ({100 * done / self._total:.0f}%)"
        if text_bytes:
            line += f", {documents / seconds:,.0f} {unit}/s, {text_bytes / seconds / 1e6:.1f} MB/s"
        if tokens:
            line += f", {tokens / seconds:,.0f} tokens/s"
        if documents and done < self._total:
            line += f", {seconds / documents * (self._total - done):,.0f} s left"
        return line


def write_manifest(config: PrepareConfig, job: Job, plan: Plan) -> Funnel:
    """Write which documents were dropped, what was found in others, the report, and then the manifest, with which the
    directory is finished.

    Raises:
        UserError: no document is left.
    """
    reasons: Counter[str] = Counter()
    shards: list[Shard] = []
    with _lines_of(job.directory / DROPPED) as dropped, contextlib.ExitStack() as if_any:
        found = None
        for known in all_acknowledged([acknowledgement_path(job.directory, shard) for shard in range(job.shards)]):
            assert known.shard is not None
            shards.append(known.shard)
            reasons.update(each["reason"] for each in known.dropped)
            dropped(known.dropped)
            if known.found:
                found = found or if_any.enter_context(_lines_of(job.directory / FOUND))
                found(known.found)
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
    funnel = write_report(job.directory, asked_of(config, job, plan.settings), tally_of(job))
    write_whole(job.directory / MANIFEST, manifest.to_json())
    return funnel


@contextlib.contextmanager
def _lines_of(path: epath.Path) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Gives what adds lines of JSON to a file, which is there, whole, when the block ends."""
    with path.open("wb") if is_remote(path) else replacing(path) as file:
        yield lambda lines: file.writelines(map(_line, lines))


def _line(value: Any) -> bytes:
    # Names of files, which lead to records, need not be valid Unicode.
    return json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n"


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
