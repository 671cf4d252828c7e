"""Show what a model will be trained on: `python -m llama_jax.preview`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("preview")

import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from etils import epath

from llama_jax.checkpoints.opening import find_model
from llama_jax.config import PreviewConfig, PreviewInstructionsConfig
from llama_jax.core.errors import UserError
from llama_jax.data.instructions.inspection import examples_report, first_rows, report_lines
from llama_jax.data.rows.inspection import Lengths, RowStatistics, Segment, measure_lengths, segments_of
from llama_jax.data.rows.loader import Loader, streams_of_batch
from llama_jax.data.rows.mixture import Mixture, open_mixture
from llama_jax.data.rows.packing import Row
from llama_jax.data.rows.positions import RowsPosition
from llama_jax.data.rows.progress import Progress, progress
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.supervised.fine_tuning import open_examples

_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def preview(config: PreviewConfig | PreviewInstructionsConfig) -> None:
    """Run the command."""
    if isinstance(config, PreviewConfig):
        _preview_text(config)
    else:
        _preview_instructions(config)


def _preview_instructions(config: PreviewInstructionsConfig) -> None:
    say = functools.partial(print, flush=True)
    _, tokenizer, loader = open_examples(config, find_model(config.model, say), say=say)
    show = _Painter(sys.stdout.isatty(), config.characters)
    examples = first_rows(loader, config.examples)
    for number, row in enumerate(examples):
        print(show.example(number, "the first epoch", segments_of(row, tokenizer)))
    measured_rows = -(-config.measured_tokens // config.data.sequence_length)
    report = examples_report(loader, tokenizer, config.training.batch_size, measured_rows)
    print("\n".join(report_lines(report)))
    if config.json:
        shown = [{"segments": [segment._asdict() for segment in segments_of(row, tokenizer)]} for row in examples]
        print(json.dumps({**report, "examples_shown": shown}))


def _preview_text(config: PreviewConfig) -> None:
    mixture = open_mixture(config.data)
    training, held_out = mixture.hold_out(config.data.validation_fraction)
    tokenizer, tokenizer_name = _tokenizer(config, training)
    examples, statistics, read = _read(config, training, tokenizer)
    lengths = {
        source.name: measure_lengths(source.documents, tokenizer, config.measured_documents)
        for source in training.sources
    }
    report = _report(config, training, lengths, statistics, read)
    report |= {"tokenizer": tokenizer_name, "vocab_size": tokenizer.vocab_size, "held_out_documents": len(held_out)}
    report["dropped"] = dict(sum((told.dropped for told in read.values()), Counter()))
    show = _Painter(sys.stdout.isatty(), config.characters)
    for number, (source, row) in enumerate(examples):
        print(show.example(number, source, segments_of(row, tokenizer)))
    print("\n".join(_summary(config, report)))
    if config.json:
        shown = [
            {"source": source, "segments": [segment._asdict() for segment in segments_of(row, tokenizer)]}
            for source, row in examples
        ]
        print(json.dumps({**report, "examples": shown}))


def _tokenizer(config: PreviewConfig, mixture: Mixture) -> tuple[Tokenizer, str]:
    """The tokenizer that training would use, and what it is.

    Raises:
        UserError: it has more tokens than the model.
    """
    vocab_size = config.model.vocab_size
    kept = epath.Path(config.run_dir) / "tokenizer.model"
    path = config.data.tokenizer or mixture.tokenizer_directory or (kept if kept.exists() else None)
    if path is None:
        print(f"training a tokenizer of {vocab_size} pieces, as pretrain would", flush=True)
        return train_tokenizer(mixture.texts(), vocab_size), "trained on this text"
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"data.tokenizer: {path} has {tokenizer.vocab_size} tokens, more than model.vocab_size {vocab_size}"
        )
    return tokenizer, str(path)


def _read(
    config: PreviewConfig, mixture: Mixture, tokenizer: Tokenizer
) -> tuple[list[tuple[str, Row]], RowStatistics, dict[str, Progress]]:
    """(source and row of each example, counts over all rows read, what was read of each source).

    The rows are those of a loader like that of training, of large batches the first ones only.
    """
    wanted = max(config.examples, -(-config.measured_tokens // config.data.sequence_length))
    loader = Loader(
        mixture,
        tokenizer,
        config.data,
        config.seed,
        batch_size_at=config.training.batch_size_at,
        rows_of=lambda size: range(min(size, wanted)),
        say=lambda line: print(line, flush=True),
    )
    sources = _sources(config, mixture)
    examples: list[tuple[str, Row]] = []
    statistics = RowStatistics()
    position = RowsPosition()
    loader.start()
    try:
        while statistics.rows < wanted:
            rows, position = next(loader)
            names = next(sources)
            for number in range(len(rows["tokens"])):
                row = {name: array[number] for name, array in rows.items()}
                statistics.add(row, tokenizer)
                if len(examples) < config.examples:
                    examples.append((names[number], row))
    finally:
        loader.close()
    return examples, statistics, progress(position.streams, mixture)


def _sources(config: PreviewConfig, mixture: Mixture) -> Iterator[list[str]]:
    """For one batch after the other, the name of the source of each row."""
    streams = config.data.streams
    given: Counter[int] = Counter()
    step = first_row = 0
    while True:
        size = config.training.batch_size_at(step)
        names = []
        for stream in streams_of_batch(first_row, size, streams).tolist():
            names.append(mixture.sources[mixture.source_of(given[stream] * streams + stream, config.seed)].name)
            given[stream] += 1
        yield names
        step, first_row = step + 1, first_row + size


def _report(
    config: PreviewConfig,
    mixture: Mixture,
    lengths: dict[str, Lengths],
    statistics: RowStatistics,
    read: dict[str, Progress],
) -> dict[str, Any]:
    """Everything that is told, as JSON."""
    training, length = config.training, config.data.sequence_length
    stages = training.stages
    ends = [*(start for start, _ in stages[1:]), training.steps]
    rows = sum(size * max(0, min(end, training.steps) - start) for (start, size), end in zip(stages, ends, strict=True))
    sources = {}
    for source, share in zip(mixture.sources, mixture.shares, strict=True):
        measured = lengths[source.name]
        sources[source.name] = {
            "share": share,
            "share_of_rows_read": read[source.name].rows / max(1, sum(told.rows for told in read.values())),
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
        "steps": training.steps,
        "sequence_length": length,
        "tokens_in_training": rows * length,
        "tokens": sum(source["tokens"] for source in sources.values()),
        "sources": sources,
        "rows": statistics.to_json(),
    }


def _summary(config: PreviewConfig, report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    rows = report["rows"]
    yield f"tokenizer: {report['tokenizer']}, {report['vocab_size']:,} tokens"
    yield (
        f"rows of {report['sequence_length']:,} tokens, {rows['rows']:,} read: {_percent(rows['loss_share'])} of the "
        f"tokens bear loss, {_percent(rows['padding_share'])} are padding; {rows['segments_per_row']:.1f} documents a "
        f"row, {_percent(rows['segments_split_share'])} of them in part; {_percent(rows['rows_cut_share'])} of the "
        "rows end within a document, which goes on in a later one"
    )
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    yield f"documents that could not be used, in these rows: {reasons or 'none'}"
    for name, source in report["sources"].items():
        about = "" if source["is_exact"] else "about "
        yield f"\n{name}: {source['documents']:,} documents, {about}{source['tokens']:,} tokens"
        yield (
            f"  {_percent(source['share'])} of the rows ({_percent(source['share_of_rows_read'])} of those read), "
            f"{source['tokens_in_training']:,} tokens or {source['epochs']:.2f} epochs in {report['steps']:,} steps"
        )
        yield (
            f"  tokens of a document at percentiles: {_percentiles(source['length_percentiles'])}; "
            f"{_percent(source['longer_than_a_row_share'])} are longer than a row"
        )
        if source["dropped_of_measured"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in source["dropped_of_measured"].items())
            yield f"  of {source['documents_measured']:,} documents looked at, cannot be used: {reasons}"
    yield (
        f"\nin all {report['tokens']:,} tokens of text; training takes {report['tokens_in_training']:,}; "
        f"{report['held_out_documents']:,} documents are held out for validation"
    )


def _percentiles(lengths: dict[str, int]) -> str:
    return ", ".join(f"{name}% {length:,}" for name, length in lengths.items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


class _Painter:
    """Rows as text. Tokens that bear loss are green on a terminal, elsewhere between ⟦ and ⟧."""

    def __init__(self, colours: bool, characters: int) -> None:
        self._colours = colours
        self._characters = characters

    def example(self, number: int, source: str, segments: list[Segment]) -> str:
        lines = [self._heading(f"━━ row {number} of {source}: {len(segments)} documents")]
        left = self._characters
        for place, segment in enumerate(segments):
            if left <= 0:
                lines.append(self._heading(f"── and {len(segments) - place} more documents"))
                break
            part = {(True, True): "", (True, False): ", its beginning", (False, True): ", its end"}
            what = part.get((segment.opens, segment.closes), ", its middle")
            loss = f"{segment.loss_tokens:,} bear loss"
            lines.append(self._heading(f"── document {place + 1}{what}: {segment.tokens:,} tokens, {loss}"))
            text, left = self._text(segment, left)
            lines.append(text)
        return "\n".join([*lines, ""])

    def _text(self, segment: Segment, left: int) -> tuple[str, int]:
        shown = []
        for text, bears_loss in segment.pieces:
            cut = _CONTROL.sub(lambda match: repr(match[0])[1:-1], text[: max(0, left)])
            if cut:
                opening, closing = ((_GREEN, _PLAIN) if self._colours else ("⟦", "⟧")) if bears_loss else ("", "")
                shown.append(f"{opening}{cut}{closing}")
            left -= len(text)
        if left < 0:
            shown.append(self._heading(f" … and {-left:,} more characters"))
        return "".join(shown), left

    def _heading(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._colours else text
