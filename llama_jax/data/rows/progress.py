"""What the records of the streams tell of each source: epochs, rows, documents that could not be used."""

from collections import Counter
from typing import NamedTuple

from llama_jax.core.errors import UserError
from llama_jax.data.rows.mixture import Mixture
from llama_jax.data.rows.packing import Position
from llama_jax.data.rows.streams import Records

_ENOUGH_TO_JUDGE = 1000
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


def progress(records: Records, mixture: Mixture) -> dict[str, Progress]:
    """What has been read of each source, by its name, in the streams that the records tell of."""
    told: dict[str, Progress] = {}
    for number, source in enumerate(mixture.sources):
        at = [Position.from_json(record["sources"][number]) for record in records.values()]
        documents = sum(position.documents for position in at)
        dropped = sum((Counter(position.dropped) for position in at), Counter())
        rows = sum(position.rows for position in at)
        told[source.name] = Progress(documents, documents / len(source.documents), rows, dropped)
    return told


def dropped_in(records: Records) -> bool:
    """Whether there was a document that could not be used."""
    return any(Position.from_json(position).dropped for record in records.values() for position in record["sources"])


def check_dropped(records: Records, mixture: Mixture, most: float) -> None:
    """Raise if more than the fraction `most` of the documents of a source that were read could not be used.

    Raises:
        UserError: so it is, and 1,000 documents or all of the source have been read.
    """
    for (name, told), source in zip(progress(records, mixture).items(), mixture.sources, strict=True):
        count = told.dropped.total()
        enough = told.documents >= min(_ENOUGH_TO_JUDGE, len(source.documents))
        if enough and count > most * told.documents:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in told.dropped.most_common())
            raise UserError(
                f"data.max_bad_fraction: {count:,} of {told.documents:,} documents of {name} cannot be used "
                f"({reasons}), more than {most:g} of them; repair the source, or allow more"
            )
