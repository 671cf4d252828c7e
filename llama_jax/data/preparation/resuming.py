"""What is kept while a corpus is prepared, so that the same command may resume it: what was settled when it began, and
for each shard that was examined or is whole a small file. All of it is deleted at the end."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import missing_folders, remove_empty, write_whole
from llama_jax.core.processes.lock import WriterLock
from llama_jax.data.preparation.cleaning import CLEANING_VERSION
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.preparation.job import PROGRESS
from llama_jax.data.preparation.near.making import search_settings
from llama_jax.data.preparation.rules.making import rule_settings
from llama_jax.data.preparation.rules.perplexity import PerplexityOf
from llama_jax.data.sources.documents import Documents
from llama_jax.data.sources.prepared import DROPPED, FOUND, MANIFEST, PAGE, REPORT, Shard, read_manifest
from llama_jax.data.tokenizers import load_tokenizer
from llama_jax.data.tokenizers.loading import MODEL_FILES
from llama_jax.data.tokenizers.settings import SETTINGS_FILES

_PLAN = "plan.json"
_READ_AT_ONCE = 32
_PROGRESS_VERSION = 2
"""Raise it when files of passes come to be read otherwise: what another version has begun is made again."""


class Acknowledged(NamedTuple):
    """What is known of a shard that was examined or written."""

    shard: Shard | None
    """None where it is not written yet."""
    dropped: list[dict[str, Any]]
    """Documents left out, in order: `document`, `reason`, and what else is known."""
    found: list[dict[str, Any]]
    """What rules found in documents, in order: `document`, and what is worth saying of it."""

    @property
    def bad(self) -> list[dict[str, Any]]:
        """Those whose record could not be used, in contrast to what cleaning left out."""
        return [each for each in self.dropped if "where" in each]


def examined_path(directory: epath.Path, number: int) -> epath.Path:
    """The file that says what becomes of the documents of a shard, as far as each by itself decides that."""
    return directory / PROGRESS / f"examined-{number:05}.json"


def acknowledgement_path(directory: epath.Path, number: int) -> epath.Path:
    """The file that says that a shard is whole."""
    return directory / PROGRESS / f"shard-{number:05}.json"


def acknowledged(path: epath.Path) -> Acknowledged:
    """What a file of either kind says."""
    values = json.loads(path.read_bytes())
    shard = values.get("shard")
    return Acknowledged(shard and Shard(**shard), values["dropped"], values["found"])


def all_acknowledged(paths: Sequence[epath.Path]) -> Iterator[Acknowledged]:
    """What many files say, in order; several are read at once, since a bucket takes its time for each."""
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        for start in range(0, len(paths), _READ_AT_ONCE):
            yield from threads.map(acknowledged, paths[start : start + _READ_AT_ONCE])


class Plan(NamedTuple):
    """What was settled when the work began."""

    source: str
    """Identity of the documents."""
    tokenizer: str
    """Fingerprint."""
    settings: dict[str, Any]
    bounds: list[int]
    """See `Job.bounds`; empty where the work is finished."""
    version: int = _PROGRESS_VERSION
    """Of what passes leave for each other."""

    def write(self, directory: epath.Path) -> None:
        """Keep it in the prepared directory."""
        write_whole(directory / PROGRESS / _PLAN, json.dumps(self._asdict()))


def settings_of(config: PrepareConfig, perplexity: PerplexityOf | None = None) -> dict[str, Any]:
    """All that decides what is written, but for the documents and the tokenizer; `source` is only for people.

    Args:
        perplexity: The model that the settings name, if they do.

    Raises:
        UserError: a file that a rule needs cannot be read.
    """
    trained = config.data.tokenizer is None
    return {
        "source": config.data.source,
        "tokenizer": f"trained, {config.vocab_size} pieces" if trained else "given",
        "cleaning": CLEANING_VERSION,
        "deduplicate": config.deduplicate,
        "minimum_characters": config.minimum_characters,
        "maximum_characters": config.maximum_characters,
        "shard_megabytes": config.shard_megabytes,
        **rule_settings(config, perplexity),
        **search_settings(config),
    }


def find_plan(directory: epath.Path, config: PrepareConfig) -> Plan | None:
    """The plan of work that was begun or finished in the directory.

    Raises:
        UserError: the directory holds something else.
    """
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        return Plan(manifest.source, manifest.tokenizer, dict(manifest.settings), [])
    if (directory / PROGRESS / _PLAN).exists():
        return Plan(**{"version": 1, **json.loads((directory / PROGRESS / _PLAN).read_bytes())})
    if directory.exists() and (others := sorted({path.name for path in directory.iterdir()} - {PROGRESS})):
        raise UserError(
            f"--output {config.output}: holds {others[0]} and is not a prepared directory; name a new one, or empty it"
        )
    return None


def check_unchanged(plan: Plan, config: PrepareConfig, settings: Mapping[str, Any], documents: Documents) -> None:
    """Refuse to resume work that another command began.

    Raises:
        UserError: a setting, the documents or the tokenizer is another.
    """
    where = f"--output {config.output}"
    for name in dict.fromkeys([*settings, *plan.settings]):
        was, now = plan.settings.get(name), settings.get(name)
        if name != "source" and was != now:
            raise UserError(
                f"{where}: {name} was {json.dumps(was)} when it was begun and is {json.dumps(now)} now; give the "
                "same value, or another --output"
            )
    if plan.source != documents.identity():
        raise UserError(
            f"{where}: the documents are not those it was begun with ({plan.settings['source']}, {plan.source}); "
            "restore them, or name another --output"
        )
    given = config.data.tokenizer
    if given is not None and load_tokenizer(given).fingerprint != plan.tokenizer:
        raise UserError(
            f"{where}: was begun with a different tokenizer than {given}; give that one, or another --output"
        )


def plan_to_resume(
    directory: epath.Path, config: PrepareConfig, settings: Mapping[str, Any], documents: Documents
) -> Plan | None:
    """The plan of work that was begun or finished in the directory and that this command goes on with. A plan that led
    to no document binds nobody: if it is another, what it left is removed.

    Args:
        settings: See `settings_of`.

    Raises:
        UserError: the directory holds something else, or work that another command began.
    """
    plan = find_plan(directory, config)
    if plan is None:
        return None
    try:
        check_unchanged(plan, config, settings, documents)
    except UserError:
        if _holds_documents(directory):
            raise
        _discard(directory)
        return None
    if plan.version != _PROGRESS_VERSION:
        print(f"{config.output}: was begun by another version of this command; its shards are made again", flush=True)
        _discard(directory)
        return None
    return plan


@contextlib.contextmanager
def sole_writer(directory: epath.Path, config: PrepareConfig) -> Iterator[None]:
    """Write to the directory within the block, and nobody else. If the work is refused before there is a document, it
    leaves nothing.

    Raises:
        UserError: the directory holds something else, or another process is writing to it.
    """
    find_plan(directory, config)  # before anything is made there
    made = missing_folders(directory)
    (directory / PROGRESS).mkdir(parents=True, exist_ok=True)
    with contextlib.closing(WriterLock(directory / PROGRESS, f"--output {config.output}")):
        try:
            yield
        except UserError:
            if not _holds_documents(directory):
                _discard(directory)
                remove_progress(directory)
                remove_empty(made)
            raise
        remove_progress(directory)


def _holds_documents(directory: epath.Path) -> bool:
    """Whether the work is finished, or a shard that is whole or examined has a document to keep: it is worth
    resuming."""
    last = {
        path.stem.rpartition("-")[2]: path
        for kind in ("examined", "shard")  # of a shard that is whole, what was left when it was examined says nothing
        for path in (directory / PROGRESS).glob(f"{kind}-*.json")
    }
    known = (json.loads(path.read_bytes()) for path in last.values())
    return (directory / MANIFEST).exists() or any(each.get("shard", each)["documents"] for each in known)


def _discard(directory: epath.Path) -> None:
    """Remove what work that came to nothing has written, but for its lock."""
    names = (*MODEL_FILES, *SETTINGS_FILES, DROPPED, FOUND, REPORT, PAGE)
    made = (directory.glob("shard-*-of-*.array_record"), directory.glob("*.tmp"), (directory / PROGRESS).iterdir())
    for path in itertools.chain((directory / name for name in names), *made):
        if path.name != "lock":
            path.unlink(missing_ok=True)


def remove_progress(directory: epath.Path) -> None:
    """Remove what is only needed to resume, and files that a kill left unfinished."""
    if (directory / PROGRESS).exists():
        (directory / PROGRESS).rmtree()
    for path in directory.glob("*.tmp"):
        path.unlink()
