"""Show what a model will be trained on: `python -m llama_jax.preview`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("preview")

import functools
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from llama_jax.checkpoints.opening import find_model
from llama_jax.data.instructions.inspection import examples_report, examples_report_lines, first_rows
from llama_jax.data.rows.inspection import documents_report, documents_report_lines, read_first_rows
from llama_jax.data.rows.mixture import Mixture, open_mixture
from llama_jax.data.rows.packing import Row
from llama_jax.data.rows.segments import RowPainter, segments_of
from llama_jax.data.rows.streams import Pipeline
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.supervised.config import FineTuningConfig, PretrainConfig
from llama_jax.supervised.instructions import open_examples

_say = functools.partial(print, flush=True)


def preview(config: Any) -> None:
    """Print the first rows of training and a report on the data; nothing is written."""
    measured_rows = -(-config.measured_tokens // config.data.sequence_length)
    if isinstance(config, FineTuningConfig):
        _, tokenizer, loader = open_examples(config, find_model(config.model, _say), _say)
        rows = [("the first epoch", row) for row in first_rows(loader, config.examples)]
        report = examples_report(loader, tokenizer, config.training.batch_size, measured_rows)
        shown = _show(config, rows, tokenizer, examples_report_lines(report))
        report |= {"examples_shown": [{"segments": segments} for _, segments in shown]}
    else:
        training, held_out = open_mixture(config.data).hold_out(config.data.validation_fraction)
        tokenizer, name = _tokenizer(config, training)
        pipeline, plan = Pipeline(training, tokenizer, config.data, config.seed), config.training
        read = max(config.examples, measured_rows)
        first = read_first_rows(pipeline, plan.batch_size_at, rows=read, examples=config.examples, say=_say)
        rows, measured = plan.rows_until(plan.steps), config.measured_documents
        report = documents_report(pipeline, first, steps=plan.steps, rows=rows, measured_documents=measured)
        report |= {"tokenizer": name, "held_out_documents": len(held_out)}
        shown = _show(config, first.examples, tokenizer, documents_report_lines(report))
        report |= {"examples": [{"source": source, "segments": segments} for source, segments in shown]}
    if config.json:
        print(json.dumps(report))


def _show(
    config: Any,
    rows: Iterable[tuple[str, Row]],
    tokenizer: Tokenizer,
    report: Iterable[str],
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Print rows and then the lines of the report; gives the source of each row and its documents as JSON."""
    painter = RowPainter(sys.stdout.isatty(), config.characters)
    shown = [(source, segments_of(row, tokenizer)) for source, row in rows]
    for number, (source, segments) in enumerate(shown):
        print(painter.row(number, source, segments))
    print("\n".join(report))
    return [(source, [segment._asdict() for segment in segments]) for source, segments in shown]


def _tokenizer(config: PretrainConfig, mixture: Mixture) -> tuple[Tokenizer, str]:
    """The tokenizer that training would use, and what it is."""
    size, kept = config.model.vocab_size, epath.Path(config.run_dir) / "tokenizer.model"

    def own() -> Tokenizer:
        if kept.exists():
            return load_tokenizer(kept)
        _say(f"training a tokenizer of {size} pieces, as pretrain would")
        return train_tokenizer(mixture.texts(), size)

    name = config.data.tokenizer or mixture.tokenizer_directory or (kept if kept.exists() else "trained on this text")
    return mixture.tokenizer(config.data.tokenizer, size, own), str(name)
