"""The report on the examples of a run: what came of the records, how long they are, how they fill rows. For
`preview`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llama_jax.data.instructions.loader import RowLoader
from llama_jax.data.rows.inspection import PERCENTILES, RowStatistics
from llama_jax.data.rows.packing import Row
from llama_jax.data.sources.bad_records import counted
from llama_jax.data.tokenizers import Tokenizer


def first_rows(loader: RowLoader, count: int) -> list[Row]:
    """The first rows of training, as the loader gives them, but for rows of padding; it must give all rows of a batch.
    No more than those of the first epoch."""
    rows: list[Row] = []
    try:
        for batch, position in loader.start():
            if position.epoch or len(rows) >= count:
                break
            made = [{name: array[number] for name, array in batch.items()} for number in range(len(batch["tokens"]))]
            rows += [row for row in made if row["segment_ids"].any()]
    finally:
        loader.close()
    return rows[:count]


def examples_report(loader: RowLoader, tokenizer: Tokenizer, batch_size: int, measured_rows: int) -> dict[str, Any]:
    """Everything that is said about the data, as JSON: of each source what came of its records, of the examples their
    lengths and what bears loss, of the first rows how they are filled."""
    data, training = loader.data, loader.data.training
    statistics = RowStatistics()
    for row in first_rows(loader, measured_rows):
        statistics.add(row, tokenizer)
    ids = np.diff(training.starts)
    percentiles = np.percentile(ids, PERCENTILES, method="nearest").astype(int).tolist()
    sources = {
        counts.name: {
            "format": counts.form,
            "share": share,
            "records": counts.records,
            "examples": counts.examples,
            "held_out": counts.held_out,
            "truncated": counts.truncated,
            "unsaid_reasoning": counts.unsaid_reasoning,
            "dropped": dict(sorted(counts.dropped.items())),
        }
        # A source for validation comes last and has no share.
        for counts, share in zip(data.counts, [*data.shares, 0.0], strict=False)
    }
    return {
        "template": loader.layout.name,
        "sources": sources,
        "examples": len(training),
        "tokens": len(training.ids),
        "loss_share": float(training.bears_loss.mean()),
        "length_percentiles": dict(zip(map(str, PERCENTILES), percentiles, strict=True)),
        "held_out_examples": len(data.validation),
        "steps_per_epoch": loader.steps_of_epochs(1, batch_size),
        "rows": statistics.to_json(),
    }


def examples_report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    for name, source in report["sources"].items():
        yield (
            f"{name}: {source['records']:,} records ({source['format']}), {source['examples']:,} examples to train on, "
            f"{source['held_out']:,} held out, {source['share']:.1%} of the examples of an epoch"
        )
        if source["truncated"]:
            yield f"  cut, without an end of sequence to learn: {source['truncated']:,}"
        if unsaid := source["unsaid_reasoning"]:
            yield f"  reasoning_content of {unsaid:,} turns left out, as the template does not lay it out"
        if dropped := counted(source["dropped"]):
            yield f"  dropped: {dropped}"
    percentiles = ", ".join(f"{name}% {length:,}" for name, length in report["length_percentiles"].items())
    yield f"template {report['template']}; tokens of an example at percentiles: {percentiles}"
    yield (
        f"{report['examples']:,} examples, {report['tokens']:,} tokens, {report['loss_share']:.1%} of them bear loss, "
        f"{1 - report['loss_share']:.1%} are masked"
    )
    rows = report["rows"]
    yield (
        f"{rows['rows']:,} rows read: {rows['padding_share']:.1%} of the places are padding, "
        f"{rows['segments_per_row']:.1f} examples a row; {report['steps_per_epoch']:,} steps an epoch"
    )
