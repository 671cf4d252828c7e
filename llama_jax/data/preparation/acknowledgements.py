"""What is kept while a corpus is prepared, so that stopped work can be resumed: a small file for each shard that
is whole, and the hashes of its documents. All of it lies in a folder that is deleted at the end."""

import json
from typing import Any, NamedTuple

from etils import epath

from llama_jax.data.sources.prepared import Shard

PROGRESS = "progress"
"""The folder, within the prepared directory."""


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
