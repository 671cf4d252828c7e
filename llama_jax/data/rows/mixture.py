"""Several sources in one run: which of them gives each row, and what is held out of each.

Knows nothing of rows and batches beyond their numbers.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.ledger import GOLDEN_RATIO, mixed
from llama_jax.data.sources.bad_records import BadRecords
from llama_jax.data.sources.documents import BadRecordError, Documents, JoinedDocuments, hold_out, in_order
from llama_jax.data.sources.opening import open_source
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Source:
    """One part of a mixture."""

    name: str
    """As it was written in the config."""
    documents: Documents
    weight: float = 1.0
    """Share of the rows, once divided by the sum of all weights."""
    tokenizer_fingerprint: str | None = None
    """Of the tokenizer that made the ids, where the documents are ids."""
    tokenizer_directory: epath.Path | None = None
    """Where the files of that tokenizer are, for `load_tokenizer`."""


class Mixture:
    """Sources and the share that each has of the rows.

    Args:
        sources: At least one, with positive weights.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("a mixture has at least one source")
        self.sources = tuple(sources)
        total = sum(source.weight for source in sources)
        self.shares = tuple(source.weight / total for source in sources)
        """Share of the rows by source; they sum to 1."""
        self._bounds = [int(bound * 2**64) for bound in itertools.accumulate(self.shares)][:-1]

    def source_of(self, row: int, seed: int) -> int:
        """Number of the source that gives a row.

        Among any stretch of rows each source has its share to within a few rows, and nothing needs to be remembered.

        Args:
            row: Number of the row in the run: that of its stream plus `streams` times its number there.
            seed: Seed of the run.
        """
        return bisect.bisect_right(self._bounds, (row * GOLDEN_RATIO + mixed(seed)) % 2**64)

    def hold_out(self, fraction: float) -> tuple["Mixture", Documents]:
        """(what is trained on, what is held out of each source, one source after the other).

        Raises:
            UserError: a source has fewer than two documents.
        """
        training, held_out = [], []
        for source in self.sources:
            try:
                rest, held = hold_out(source.documents, fraction)
            except UserError as error:
                raise UserError(f"{error} ({source.name})") from None
            training.append(dataclasses.replace(source, documents=rest))
            held_out.append(held)
        return Mixture(training), held_out[0] if len(held_out) == 1 else JoinedDocuments(held_out)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the one that made the ids of a source.

        Raises:
            UserError: it is another one.
        """
        for source in self.sources:
            made_with = source.tokenizer_fingerprint
            if made_with not in (None, tokenizer.fingerprint):
                raise UserError(
                    f"data.tokenizer: its fingerprint is {tokenizer.fingerprint[:12]}, but the ids of {source.name} "
                    f"were made with {made_with[:12]}; leave it out to use theirs, or prepare them again"
                )

    @property
    def tokenizer_directory(self) -> epath.Path | None:
        """Where the tokenizer of prepared sources is, if there are any."""
        return next((source.tokenizer_directory for source in self.sources if source.tokenizer_directory), None)

    def tokenizer(self, named: str | None, vocab_size: int, trained: Callable[[], Tokenizer]) -> Tokenizer:
        """The tokenizer that was named, or that of prepared sources, or else a trained one.

        Args:
            named: `data.tokenizer`.
            vocab_size: of the model.
            trained: gives the trained one, such as `train_tokenizer(mixture.texts(bad_records), vocab_size)`.

        Raises:
            UserError: it has more tokens than the model.
        """
        path = named or self.tokenizer_directory
        tokenizer = trained() if path is None else load_tokenizer(path)
        if tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"data.tokenizer: {path or 'the one trained'} has {tokenizer.vocab_size} tokens, more than "
                f"model.vocab_size {vocab_size}; add --model.vocab_size {tokenizer.vocab_size}"
            )
        return tokenizer

    def description(self) -> list[str]:
        """A line for each source: how much there is of it."""
        return [
            f"{source.name}: {len(source.documents):,} documents to train on"
            + f", {share:.1%} of the rows" * (len(self) > 1)
            for source, share in zip(self.sources, self.shares, strict=True)
        ]

    def bad_records(self, config: DataConfig, say: Callable[[str], None] = lambda line: None) -> list[BadRecords]:
        """Where those of each source are counted, as the config has it; `say` is told the first few of each."""
        policy, most = config.bad_records, config.max_bad_fraction
        return [BadRecords(source.name, policy, most, say=say) for source in self.sources]

    def texts(self, bad_records: Sequence[BadRecords]) -> Iterator[str]:
        """The texts of all documents, one source after the other; ids are passed over.

        Args:
            bad_records: Of each source, where documents are noted that cannot be used.

        Raises:
            UserError: too many of a source cannot be used, or none can.
        """
        for source, bad in zip(self.sources, bad_records, strict=True):
            for document in in_order(source.documents):
                if isinstance(document, str):
                    yield document
                elif isinstance(document, BadRecordError):
                    bad.note(document)
            bad.check(len(source.documents))

    def facts(self) -> list[dict[str, Any]]:
        """What determines the rows, as JSON."""
        return [
            {"documents": source.documents.identity(), "share": share}
            for source, share in zip(self.sources, self.shares, strict=True)
        ]

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.sources)


def open_mixture(config: DataConfig) -> Mixture:
    """The sources that a config names.

    Raises:
        UserError: one of them cannot be opened; see `open_source`.
    """
    sources = []
    for name, weight in config.weighted_sources:
        documents = open_source(name, config.text_field)
        fingerprint, directory = (getattr(documents, of, None) for of in ("tokenizer_fingerprint", "directory"))
        sources.append(Source(name, documents, weight, fingerprint, directory if fingerprint else None))
    return Mixture(sources)
