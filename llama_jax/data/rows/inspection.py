"""What rows of tokens amount to, and the report on the text of a run: the first rows of training, the lengths of the
documents, and how much of each source training takes. For `preview`."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llama_jax.core.arrays import Int
from llama_jax.data.rows.display import documents_of
from llama_jax.data.rows.loader import Loader, streams_of_batch
from llama_jax.data.rows.packing import Row, token_ids
from llama_jax.data.rows.positions import RowsPosition
from llama_jax.data.rows.progress import Progress, progress
from llama_jax.data.rows.streams import Pipeline
from llama_jax.data.sources.bad_records import counted
from llama_jax.data.sources.documents import BadRecordError, Documents, SelectedDocuments, in_order
from llama_jax.data.tokenizers import Tokenizer

PERCENTILES = (1, 10, 50, 90, 99, 100)


@dataclass
class RowStatistics:
    """Counts over rows, added one by one."""

    rows: int = 0
    tokens: int = 0
    """Places for tokens, padding included."""
    padding: int = 0
    loss_tokens: int = 0
    segments: int = 0
    """Documents, or examples of several."""
    whole: int = 0
    """Those of them that lie in one row from their first token to their last."""
    cut: int = 0
    """Rows that end in the middle of a document."""

    def add(self, row: Row, tokenizer: Tokenizer) -> None:
        """Count a row."""
        documents, members = documents_of(row), row["starts"].shape[-1] if "starts" in row else 1
        self.rows += 1
        self.tokens += len(row["tokens"])
        self.padding += int((row["segment_ids"] == 0).sum())
        self.loss_tokens += int((row["loss_weights"] > 0).sum())
        self.segments += len(documents) // members
        closes = [each.ids[-1] in tokenizer.stop_ids for each in documents]
        opens = [each.ids[0] == tokenizer.bos_id for each in documents]
        is_whole = [*map(all, zip(opens, closes, strict=True))]
        self.whole += sum(all(is_whole[first : first + members]) for first in range(0, len(is_whole), members))
        self.cut += bool(documents) and not closes[-1]

    def to_json(self) -> dict[str, Any]:
        """Counts, and shares between 0 and 1."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "padding_share": self.padding / max(1, self.tokens),
            "loss_share": self.loss_tokens / max(1, self.tokens),
            "segments_per_row": self.segments / max(1, self.rows),
            "segments_split_share": 1 - self.whole / max(1, self.segments),
            "rows_cut_share": self.cut / max(1, self.rows),
        }


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a source are, in tokens with BOS and EOS, judged by some of them."""

    documents: int
    """All of the source."""
    lengths: Int[np.ndarray, "sampled"]
    """Of those that were looked at and can be used."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Those that were looked at and cannot be used, by reason."""

    @property
    def sampled(self) -> int:
        """Documents that were looked at."""
        return len(self.lengths) + sum(self.dropped.values())

    @property
    def is_exact(self) -> bool:
        """All documents were looked at."""
        return self.sampled == self.documents

    @property
    def total(self) -> int:
        """Tokens of all documents, by estimate unless `is_exact`."""
        return round(float(self.lengths.sum()) * self.documents / max(1, self.sampled))

    @property
    def total_predicted(self) -> int:
        """Tokens of all documents that are predicted: all but the first of each."""
        predicted = float(self.lengths.sum()) - len(self.lengths)
        return round(predicted * self.documents / max(1, self.sampled))

    def percentiles(self) -> dict[str, int]:
        """Lengths by percentile, in whole tokens."""
        if not len(self.lengths):
            return {}
        values = np.percentile(self.lengths, PERCENTILES, method="nearest")
        return {str(percentile): int(value) for percentile, value in zip(PERCENTILES, values, strict=True)}

    def longer_than(self, tokens: int) -> float:
        """Share of the documents that have more tokens to predict than a row has places."""
        return float((self.lengths - 1 > tokens).mean()) if len(self.lengths) else 0.0


def measure_lengths(documents: Documents, tokenizer: Tokenizer, sample: int) -> Lengths:
    """Look at so many documents at the most, spread evenly over the source."""
    count = len(documents)
    chosen = np.unique(np.linspace(0, count - 1, min(count, sample)).astype(np.int64))
    lengths: list[int] = []
    dropped: Counter[str] = Counter()
    sampled = in_order(SelectedDocuments(documents, chosen, "sampled"))
    for number, document in zip(chosen.tolist(), sampled, strict=True):
        try:
            lengths.append(len(token_ids(document, tokenizer, number)))
        except BadRecordError as error:
            dropped[error.reason] += 1
    return Lengths(count, np.array(lengths, np.int64), dict(sorted(dropped.items())))


class FirstRows(NamedTuple):
    """The first rows of training."""

    examples: list[tuple[str, Row]]
    """Source and row of the first few of them."""
    statistics: RowStatistics
    progress: dict[str, Progress]
    """What was read of each source."""


def read_first_rows(
    pipeline: Pipeline, batch_size_at: Callable[[int], int], *, rows: int, examples: int, say: Callable[[str], None]
) -> FirstRows:
    """Read rows with a loader like that of training; of large batches the first rows only.

    Args:
        rows: To read, at least.
        examples: Rows to give back.
        say: Told the first few bad records.
    """
    loader = Loader(
        pipeline.mixture,
        pipeline.tokenizer,
        pipeline.config,
        pipeline.seed,
        batch_size_at=batch_size_at,
        rows_of=lambda size: range(min(size, rows)),
        say=say,
    )
    sources = _sources_of_rows(pipeline, batch_size_at)
    found: list[tuple[str, Row]] = []
    statistics, position = RowStatistics(), RowsPosition()
    loader.start()
    try:
        while statistics.rows < rows:
            batch, position = next(loader)
            names = next(sources)
            for number in range(len(batch["tokens"])):
                row = {name: array[number] for name, array in batch.items()}
                statistics.add(row, pipeline.tokenizer)
                if len(found) < examples:
                    found.append((names[number], row))
    finally:
        loader.close()
    return FirstRows(found, statistics, progress(position.streams, pipeline.mixture))


def _sources_of_rows(pipeline: Pipeline, batch_size_at: Callable[[int], int]) -> Iterator[list[str]]:
    """For one batch after the other, the name of the source of each row."""
    mixture, streams = pipeline.mixture, pipeline.config.streams
    given: Counter[int] = Counter()
    step = first_row = 0
    while True:
        size = batch_size_at(step)
        names = []
        for stream in streams_of_batch(first_row, size, streams).tolist():
            names.append(mixture.sources[mixture.source_of(given[stream] * streams + stream, pipeline.seed)].name)
            given[stream] += 1
        yield names
        step, first_row = step + 1, first_row + size


def documents_report(
    pipeline: Pipeline, first: FirstRows, *, steps: int, rows: int, measured_documents: int
) -> dict[str, Any]:
    """Everything that is said about the text of a run, as JSON.

    Args:
        steps: Of training.
        rows: Of all its batches.
        measured_documents: Of each source, at the most.
    """
    length, read = pipeline.config.sequence_length, first.progress
    all_read = max(1, sum(source.rows for source in read.values()))
    sources = {}
    for source, share in zip(pipeline.mixture.sources, pipeline.mixture.shares, strict=True):
        measured = measure_lengths(source.documents, pipeline.tokenizer, measured_documents)
        sources[source.name] = {
            "share": share,
            "share_of_rows_read": read[source.name].rows / all_read,
            "documents": measured.documents,
            "tokens": measured.total,
            "is_exact": measured.is_exact,
            "tokens_in_training": round(share * rows * length),
            "epochs": share * rows * length / max(1, measured.total_predicted),
            "length_percentiles": measured.percentiles(),
            "longer_than_a_row_share": measured.longer_than(length),
            "documents_measured": measured.sampled,
            "dropped_of_measured": dict(measured.dropped),
        }
    return {
        "steps": steps,
        "sequence_length": length,
        "tokens_in_training": rows * length,
        "tokens": sum(source["tokens"] for source in sources.values()),
        "sources": sources,
        "rows": first.statistics.to_json(),
        "vocab_size": pipeline.tokenizer.vocab_size,
        "dropped": dict(sum((source.dropped for source in read.values()), Counter())),
    }


def documents_report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people; it must also have `tokenizer`, what the tokenizer is, and `held_out_documents`."""
    rows = report["rows"]
    yield f"tokenizer: {report['tokenizer']}, {report['vocab_size']:,} tokens"
    yield (
        f"rows of {report['sequence_length']:,} tokens, {rows['rows']:,} read: {rows['loss_share']:.1%} of the "
        f"tokens bear loss, {rows['padding_share']:.1%} are padding; {rows['segments_per_row']:.1f} documents a "
        f"row, {rows['segments_split_share']:.1%} of them in part; {rows['rows_cut_share']:.1%} of the rows end within "
        "a document, which continues in a later one"
    )
    yield f"documents that could not be used, in these rows: {counted(report['dropped']) or 'none'}"
    for name, source in report["sources"].items():
        about = "" if source["is_exact"] else "about "
        yield f"\n{name}: {source['documents']:,} documents, {about}{source['tokens']:,} tokens"
        yield (
            f"  {source['share']:.1%} of the rows ({source['share_of_rows_read']:.1%} of those read), "
            f"{source['tokens_in_training']:,} tokens or {source['epochs']:.2f} epochs in {report['steps']:,} steps"
        )
        percentiles = ", ".join(f"{each}% {length:,}" for each, length in source["length_percentiles"].items())
        longer = f"{source['longer_than_a_row_share']:.1%} are longer than a row"
        yield f"  tokens of a document at percentiles: {percentiles}; {longer}"
        if dropped := counted(source["dropped_of_measured"]):
            yield f"  of {source['documents_measured']:,} documents looked at, cannot be used: {dropped}"
    yield (
        f"\nin all {report['tokens']:,} tokens of text; training takes {report['tokens_in_training']:,}; "
        f"{report['held_out_documents']:,} documents are held out for validation"
    )
