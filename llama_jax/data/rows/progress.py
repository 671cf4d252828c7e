"""What the positions of the streams tell of each source: epochs, rows, documents that could not be used."""

from collections import Counter
from typing import NamedTuple

from llama_jax.data.rows.mixture import Mixture
from llama_jax.data.rows.positions import StreamPositions
from llama_jax.data.sources.bad_records import check_bad_fraction

_MIN_DOCUMENTS = 1000
"""Documents of a source that must have been read before the share of bad ones means anything."""


class Progress(NamedTuple):
    """What has been read of one source."""

    documents: int
    """Documents begun, those that could not be used among them, each time anew."""
    epochs: float
    """The same, for each document there is."""
    rows: int
    """Rows given."""
    dropped: Counter[str]
    """Documents that could not be used, by reason."""


def progress(streams: StreamPositions, mixture: Mixture) -> dict[str, Progress]:
    """What has been read of each source, by its name, in these streams."""
    found: dict[str, Progress] = {}
    for number, source in enumerate(mixture.sources):
        at = [stream.sources[number] for stream in streams.values()]
        documents = sum(position.documents for position in at)
        dropped = sum((Counter(position.dropped) for position in at), Counter())
        rows = sum(position.rows for position in at)
        found[source.name] = Progress(documents, documents / len(source.documents), rows, dropped)
    return found


def check_dropped(streams: StreamPositions, mixture: Mixture, most: float) -> None:
    """Raise if more than the fraction `most` of the documents of a source that were read could not be used.

    Raises:
        UserError: so it is, and 1,000 documents or all of the source have been read.
    """
    for (name, read), source in zip(progress(streams, mixture).items(), mixture.sources, strict=True):
        enough = read.documents >= min(_MIN_DOCUMENTS, len(source.documents))
        if enough:
            check_bad_fraction(name, read.dropped, read.documents, most)
