"""Turn text into shards of token ids: `python -m llama_jax.prepare`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("prepare")

import contextlib
import fcntl
import functools
import io
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from llama_jax.config import PrepareConfig
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.files import absolute, is_remote, write_whole
from llama_jax.data.preparation.cleaning import CLEANING_VERSION, Cleaning
from llama_jax.data.preparation.shards import (
    NO_DUPLICATES,
    PROGRESS,
    Duplicates,
    Job,
    Meter,
    Workers,
    acknowledged,
    acknowledgement_path,
    as_text,
    duplicates_of,
    hashes_path,
    shard_bounds,
)
from llama_jax.data.sources.documents import BadRecordError, Documents
from llama_jax.data.sources.opening import open_source
from llama_jax.data.sources.prepared import DROPPED, MANIFEST, Manifest, Shard, id_dtype, open_prepared, read_manifest
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.data.tokenizers.loading import MODEL_FILES

_PLAN = "plan.json"
_TRAINING_BYTES = 2**25  # of text: the trainer of tokenizers holds it in memory several times over
_COMPARED_AT_ONCE = 2**23  # documents, a third of a gigabyte
_SECONDS_BETWEEN_LINES = 10.0


def prepare(config: PrepareConfig) -> None:
    """Run the command."""
    directory = absolute(epath.Path(config.output).expanduser())
    begun = _begun(directory, config)
    documents = open_source(config.data.source, config.data.text_field)
    settings = _settings(config)
    _refuse_other_settings(config, begun, documents, settings)
    if (directory / MANIFEST).exists():
        _remove_remains(directory)
        print(f"{config.output} is prepared already: {_described(open_prepared(directory).manifest)}")
        return
    tokenizer = _tokenizer(config, directory, documents, begun)
    bounds = begun.bounds if begun else shard_bounds(documents, config.shard_megabytes)
    (directory / PROGRESS).mkdir(parents=True, exist_ok=True)
    with _only_writer(directory, config), _Signals() as signals:
        plan = begun or _Plan(documents.identity(), tokenizer.fingerprint, settings, bounds)
        write_whole(directory / PROGRESS / _PLAN, json.dumps(plan._asdict()))
        for name, content in tokenizer.files().items():
            write_whole(directory / name, content)
        cleaning = Cleaning(config.minimum_characters, config.maximum_characters)
        job = Job(documents, tokenizer, cleaning, bounds, directory, config.data.bad_records == "fail")
        _write_shards(config, job, signals)
        manifest = _finish(config, job, plan)
    print(f"{config.output}: {_described(manifest)}")
    print(f"train on it: python -m llama_jax.pretrain --data.source {config.output}")


class _Plan(NamedTuple):
    """What was settled when the work began."""

    source: str
    """Identity of the documents."""
    tokenizer: str
    """Fingerprint."""
    settings: dict[str, Any]
    bounds: list[int]


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """All that decides what is written, but for the documents and the tokenizer; `source` is only for people."""
    trained = config.data.tokenizer is None
    return {
        "source": config.data.source,
        "tokenizer": f"trained, {config.vocab_size} pieces" if trained else "given",
        "cleaning": CLEANING_VERSION,
        "deduplicate": config.deduplicate,
        "minimum_characters": config.minimum_characters,
        "maximum_characters": config.maximum_characters,
        "shard_megabytes": config.shard_megabytes,
    }


def _begun(directory: epath.Path, config: PrepareConfig) -> _Plan | None:
    """The plan of work that was begun or finished here.

    Raises:
        UserError: the directory holds something else.
    """
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        return _Plan(manifest.source, manifest.tokenizer, dict(manifest.settings), [])
    if (directory / PROGRESS / _PLAN).exists():
        return _Plan(**json.loads((directory / PROGRESS / _PLAN).read_bytes()))
    if directory.exists() and (others := sorted({path.name for path in directory.iterdir()} - {PROGRESS})):
        raise UserError(
            f"--output {config.output}: holds {others[0]} and is not a prepared directory; name a new one, or empty it"
        )
    return None


def _refuse_other_settings(
    config: PrepareConfig, begun: _Plan | None, documents: Documents, settings: dict[str, Any]
) -> None:
    if begun is None:
        return
    where = f"--output {config.output}"
    for name, value in settings.items():
        if name != "source" and (was := begun.settings.get(name)) != value:
            raise UserError(
                f"{where}: {name} was {json.dumps(was)} when it was begun and is {json.dumps(value)} now; give the "
                "same value, or another --output"
            )
    if begun.source != documents.identity():
        raise UserError(
            f"{where}: the documents are not those it was begun with ({begun.settings['source']}, {begun.source}); "
            "restore them, or name another --output"
        )
    given = config.data.tokenizer
    if given is not None and load_tokenizer(given).fingerprint != begun.tokenizer:
        raise UserError(f"{where}: was begun with another tokenizer than {given}; give that, or another --output")


def _tokenizer(config: PrepareConfig, directory: epath.Path, documents: Documents, begun: _Plan | None) -> Tokenizer:
    """The tokenizer named, or one trained on the text, which is kept in the directory."""
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer)
    if begun is not None and any((directory / name).exists() for name in MODEL_FILES):
        return load_tokenizer(directory)
    print(f"training a tokenizer of {config.vocab_size} pieces", flush=True)
    return train_tokenizer(_training_texts(documents), config.vocab_size)


def _training_texts(documents: Documents) -> Iterator[str]:
    """Documents from all over the source, as many as training can hold in memory."""
    count = len(documents)
    left = _TRAINING_BYTES
    # A step that shares no factor with the count comes to each document once, far apart at first.
    step = next(step for step in range(max(1, round(count * 0.618)), count + 2) if np.gcd(step, count) == 1)
    for number in range(count):
        with contextlib.suppress(BadRecordError):
            text = as_text(documents[number * step % count])
            left -= len(text.encode())
            if left < 0:
                return
            yield text


@contextlib.contextmanager
def _only_writer(directory: epath.Path, config: PrepareConfig) -> Iterator[None]:
    """Keep other processes of this machine from writing to the directory, until this one ends."""
    if is_remote(directory):
        yield
        return
    with Path(directory / PROGRESS / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output {config.output}: another process is preparing it; wait for it to end") from None
        except OSError:
            pass  # no locks here, as on some network and bucket mounts
        yield


class _Signals:
    """SIGTERM and Ctrl-C as a request to stop; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        with contextlib.suppress(ValueError):  # not the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = True


def _write_shards(config: PrepareConfig, job: Job, signals: _Signals) -> None:
    """Everything that is done document by document.

    Raises:
        SavedAfterSignal: it was told to stop; what is done is kept.
        UserError: too many records are bad.
    """
    missing = [number for number in range(job.shards) if not acknowledgement_path(job.directory, number).exists()]
    bad = _BadRecords(config, job)
    for number in sorted(set(range(job.shards)) - set(missing)):
        bad.count(number)
    if not missing:
        return
    count = (os.cpu_count() or 1) if config.workers is None else config.workers
    meter = Meter()
    # One process more would start up for longer than it takes to write a single shard.
    count = 0 if len(missing) == 1 and config.workers is None else min(count, len(missing))
    with Workers(job, count, meter) as workers:
        duplicates = _find_duplicates(job, workers, meter, signals) if config.deduplicate else NO_DUPLICATES
        progress = _Progress("writing", job, missing, meter, signals)
        for number in workers.write_shards(missing, duplicates, progress.tick):
            bad.count(number)
        progress.close()


def _find_duplicates(job: Job, workers: Workers, meter: Meter, signals: _Signals) -> Duplicates:
    numbers = range(job.shards)
    missing = [number for number in numbers if not hashes_path(job.directory, number).exists()]
    progress = _Progress("comparing", job, missing, meter, signals)
    for _ in workers.hash_shards(missing, progress.tick):
        pass
    progress.close()

    def load(number: int) -> np.ndarray:
        return np.load(io.BytesIO(hashes_path(job.directory, number).read_bytes()))

    duplicates = duplicates_of([functools.partial(load, number) for number in numbers], _COMPARED_AT_ONCE)
    print(f"{len(duplicates.documents):,} documents are the same as an earlier one", flush=True)
    return duplicates


class _BadRecords:
    """Counts records that could not be used, shard by shard, and ends the work when they are too many."""

    def __init__(self, config: PrepareConfig, job: Job) -> None:
        self._most = config.data.max_bad_fraction
        self._job = job
        self._count = 0

    def count(self, number: int) -> None:
        bad = acknowledged(self._job.directory, number).bad
        self._count += len(bad)
        total = len(self._job.documents)
        if bad and self._count > self._most * total:
            first = bad[0]
            raise UserError(
                f"data.max_bad_fraction: {self._count} bad records of {total} documents are more than {self._most}; "
                f"such as {first['where']}: {first['message']}"
            )


class _Progress:
    """What is done, how fast, and how long it will take: one live line on a terminal, elsewhere a line now and then."""

    def __init__(self, what: str, job: Job, numbers: list[int], meter: Meter, signals: _Signals) -> None:
        self._what, self._meter, self._signals = what, meter, signals
        self._total = len(job.documents)
        self._before = self._total - sum(job.bounds[number + 1] - job.bounds[number] for number in numbers)
        self._first = meter.read()
        self._started = time.monotonic()
        self._live = sys.stdout.isatty()
        self._shown = self._started

    def tick(self) -> None:
        """Show a line if it is time for one.

        Raises:
            SavedAfterSignal: a signal asked to stop.
        """
        if self._signals.received:
            raise SavedAfterSignal(
                "stopped after a signal; the shards that are whole are kept, the same command goes on"
            )
        now = time.monotonic()
        if now - self._shown >= (0.5 if self._live else _SECONDS_BETWEEN_LINES):
            self._shown = now
            print(f"\r{self._line()}\x1b[K" if self._live else self._line(), end="" if self._live else "\n", flush=True)

    def close(self) -> None:
        """Show the last state."""
        print(f"\r{self._line()}\x1b[K" if self._live else self._line(), flush=True)

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


def _finish(config: PrepareConfig, job: Job, plan: _Plan) -> Manifest:
    """Write what was dropped and the manifest, and remove what was only needed on the way."""
    reasons: Counter[str] = Counter()
    shards: list[Shard] = []
    with _whole(job.directory / DROPPED) as file:
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
        raise UserError(f"--output {config.output}: no document is left: {_reasons(manifest)}")
    write_whole(job.directory / MANIFEST, manifest.to_json())
    _remove_remains(job.directory)
    return manifest


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[Any]:
    """A file to write that is there as a whole or not at all."""
    temporary = path if is_remote(path) else path.parent / PROGRESS / path.name
    with temporary.open("wb") as file:
        yield file
    if not is_remote(path):
        Path(temporary).replace(path)


def _remove_remains(directory: epath.Path) -> None:
    if (directory / PROGRESS).exists():
        (directory / PROGRESS).rmtree()
    for path in directory.glob("*.tmp"):
        path.unlink()


def _described(manifest: Manifest) -> str:
    shards = len(manifest.shards)
    line = (
        f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.text_bytes:,} bytes of text "
        f"({manifest.text_bytes / max(1, manifest.tokens):.2f} a token) in {shards} shard{'s' * (shards > 1)}"
    )
    return f"{line}; dropped {_reasons(manifest)}, see {DROPPED}" if manifest.dropped else f"{line}; none dropped"


def _reasons(manifest: Manifest) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items())
