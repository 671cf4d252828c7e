"""What occurs again, of documents or of parts of them: the first occurrence stays. Knows hashes, not what is hashed."""

import numpy as np

from llama_jax.core.arrays import Integer
from llama_jax.data.preparation.near.slices import Exchange, gathered


def find_documents(exchange: Exchange, source: str, target: str, partition: int) -> None:
    """From records (hash, more of the hash, document) of `source` to those (document, the first with its hash, 0) of
    `target`."""
    records = gathered(exchange.of_partition(source, partition))
    again, first = _later(records, hashes=2)
    exchange.to_shards(target, partition, np.stack([again[:, 2], first[:, 2], np.zeros_like(again[:, 2])], axis=1))


def find_parts(exchange: Exchange, source: str, target: str, partition: int) -> None:
    """From records (hash, document, part) of `source` to those (document, part, the first document with that hash) of
    `target`."""
    records = gathered(exchange.of_partition(source, partition))
    again, first = _later(records, hashes=1)
    exchange.to_shards(target, partition, np.stack([again[:, 1], again[:, 2], first[:, 1]], axis=1))


def _later(
    records: Integer[np.ndarray, "records 3"], hashes: int
) -> tuple[Integer[np.ndarray, "again 3"], Integer[np.ndarray, "again 3"]]:
    """Of ascending records those with the hash of an earlier one, and of each the first with that hash."""
    same = np.zeros(len(records), bool)
    same[1:] = (records[1:, :hashes] == records[:-1, :hashes]).all(axis=1)
    firsts = np.flatnonzero(~same)
    return records[same], records[firsts[np.cumsum(~same)[same] - 1]]
