"""What is kept while a corpus is prepared, so that the same command may resume it: what was settled when it began, and
for each shard that is whole a small file and the hashes of its documents. All of it is deleted at the end."""

import json
from typing import Any, NamedTuple

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.data.preparation.cleaning import CLEANING_VERSION
from llama_jax.data.preparation.config import PrepareConfig
from llama_jax.data.sources.documents import Documents
from llama_jax.data.sources.prepared import MANIFEST, Shard, read_manifest
from llama_jax.data.tokenizers import load_tokenizer

PROGRESS = "progress"
"""The folder, within the prepared directory."""
_PLAN = "plan.json"


class Acknowledged(NamedTuple):
    """A shard that is whole."""

    shard: Shard
    dropped: list[dict[str, Any]]
    """Documents left out, in order: `document`, `reason`, and what else is known."""

    @property
    def bad(self) -> list[dict[str, Any]]:
        """Those whose record could not be used, in contrast to what cleaning left out."""
        return [each for each in self.dropped if "where" in each]


def hashes_path(directory: epath.Path, number: int) -> epath.Path:
    """Where the hashes of a shard's documents are."""
    return directory / PROGRESS / f"hashes-{number:05}.npy"


def acknowledgement_path(directory: epath.Path, number: int) -> epath.Path:
    """The file that says that a shard is whole."""
    return directory / PROGRESS / f"shard-{number:05}.json"


def acknowledged(directory: epath.Path, number: int) -> Acknowledged:
    """What the acknowledgement of a shard says."""
    values = json.loads(acknowledgement_path(directory, number).read_bytes())
    return Acknowledged(Shard(**values["shard"]), values["dropped"])


class Plan(NamedTuple):
    """What was settled when the work began."""

    source: str
    """Identity of the documents."""
    tokenizer: str
    """Fingerprint."""
    settings: dict[str, Any]
    bounds: list[int]
    """See `Job.bounds`; empty where the work is finished."""

    def write(self, directory: epath.Path) -> None:
        """Keep it in the prepared directory."""
        write_whole(directory / PROGRESS / _PLAN, json.dumps(self._asdict()))


def settings_of(config: PrepareConfig) -> dict[str, Any]:
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


def find_plan(directory: epath.Path, config: PrepareConfig) -> Plan | None:
    """The plan of work that was begun or finished in the directory.

    Raises:
        UserError: the directory holds something else.
    """
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory)
        return Plan(manifest.source, manifest.tokenizer, dict(manifest.settings), [])
    if (directory / PROGRESS / _PLAN).exists():
        return Plan(**json.loads((directory / PROGRESS / _PLAN).read_bytes()))
    if directory.exists() and (others := sorted({path.name for path in directory.iterdir()} - {PROGRESS})):
        raise UserError(
            f"--output {config.output}: holds {others[0]} and is not a prepared directory; name a new one, or empty it"
        )
    return None


def check_unchanged(plan: Plan, config: PrepareConfig, documents: Documents) -> None:
    """Refuse to resume work that another command began.

    Raises:
        UserError: a setting, the documents or the tokenizer is another.
    """
    where = f"--output {config.output}"
    for name, value in settings_of(config).items():
        if name != "source" and (was := plan.settings.get(name)) != value:
            raise UserError(
                f"{where}: {name} was {json.dumps(was)} when it was begun and is {json.dumps(value)} now; give the "
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


def remove_progress(directory: epath.Path) -> None:
    """Remove what is only needed to resume, and files that a kill left unfinished."""
    if (directory / PROGRESS).exists():
        (directory / PROGRESS).rmtree()
    for path in directory.glob("*.tmp"):
        path.unlink()
