"""Cutting a source into shards, and texts from all over it. Independent of what is done with them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError, Documents

_SAMPLED_DOCUMENTS = 1000


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
