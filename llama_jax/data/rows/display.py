"""Rows as a person reads them: the documents of a row, which of their tokens bear loss, and how both are shown.

Independent of where rows come from: any dictionary with the arrays of a row will do, whether all of its tokens bear
loss or some."""

import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llama_jax.data.rows.packing import Row
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.stream_decoding import StreamDecoder

_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Piece(NamedTuple):
    """A stretch of text all of whose tokens bear loss, or none."""

    text: str
    """Control tokens by their names."""
    bears_loss: bool


class Segment(NamedTuple):
    """A document of a row, or the part of it that is there."""

    pieces: list[Piece]
    tokens: int
    """All of them, the last one too, which most rows only predict."""
    loss_tokens: int
    """Tokens that are predicted with a weight above 0."""
    opens: bool
    """It begins with the first token of the document."""
    closes: bool
    """It ends with the last one."""


class Document(NamedTuple):
    """The tokens of a document of a row, or of the part of it that is there."""

    ids: list[int]
    """All of them, the last one too, which most rows only predict."""
    bears_loss: list[bool]
    """Whether each is predicted with a weight above 0."""


def documents_of(row: Row) -> list[Document]:
    """The documents of a row, in order; padding is none of them, and a prompt that several have in common is the
    beginning of each."""
    numbers = row["segment_ids"]
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    last = row["starts"].size if "starts" in row else np.inf  # what comes after that are prompts
    places = [slice(start, stop) for start, stop in itertools.pairwise(bounds) if 0 < numbers[start] <= last]
    return [_document(row, each) for each in places]


def _document(row: Row, places: slice) -> Document:
    ids, bears_loss = row["tokens"][places].tolist(), (row["loss_weights"][places] > 0).tolist()
    if "starts" not in row:
        return Document([ids[0], *row["targets"][places].tolist()], [False, *bears_loss])
    example = (int(row["segment_ids"][places.start]) - 1) // row["starts"].shape[-1]
    prompt = row["tokens"][row["segment_ids"] == row["starts"].size + example + 1].tolist()
    return Document([*prompt, *ids], [False] * (len(prompt) + 1) + bears_loss[:-1])


def segments_of(row: Row, tokenizer: Tokenizer) -> list[Segment]:
    """The documents of a row as text."""
    return [
        Segment(
            _pieces(ids, bears_loss, tokenizer),
            tokens=len(ids),
            loss_tokens=sum(bears_loss),
            opens=ids[0] == tokenizer.bos_id,
            closes=ids[-1] in tokenizer.stop_ids,
        )
        for ids, bears_loss in documents_of(row)
    ]


def _pieces(ids: Sequence[int], bears_loss: Sequence[bool], tokenizer: Tokenizer) -> list[Piece]:
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    decoder = StreamDecoder(tokenizer)
    texts: list[tuple[str, bool]] = []
    for token, bears in zip(ids, bears_loss, strict=True):
        texts.append((decoder.push(token) + names.get(token, ""), bears))
    texts.append((decoder.finish(), bears_loss[-1]))
    grouped = itertools.groupby((pair for pair in texts if pair[0]), key=lambda pair: pair[1])
    return [Piece("".join(text for text, _ in group), bears) for bears, group in grouped]


def print_rows(
    rows: Iterable[tuple[str, Row]], tokenizer: Tokenizer, characters: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Print rows, each with its source; gives the source of each and its documents as JSON."""
    painter = _Painter(sys.stdout.isatty(), characters)
    shown = [(source, segments_of(row, tokenizer)) for source, row in rows]
    for number, (source, segments) in enumerate(shown):
        print(painter.row(number, source, segments))
    return [(source, [segment._asdict() for segment in segments]) for source, segments in shown]


class _Painter:
    """Rows as text. Tokens that bear loss are green in colours, else between ⟦ and ⟧.

    Args:
        characters: To show of a row, at the most.
    """

    def __init__(self, colours: bool, characters: int) -> None:
        self._colours = colours
        self._characters = characters

    def row(self, number: int, source: str, segments: Sequence[Segment]) -> str:
        """A row of a source, with a heading for each document."""
        lines = [self._heading(f"━━ row {number} of {source}: {_counted(len(segments))}")]
        left = self._characters
        for place, segment in enumerate(segments):
            if left <= 0:
                lines.append(self._heading(f"── and {_counted(len(segments) - place, 'more ')}"))
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


def _counted(documents: int, more: str = "") -> str:
    return f"{documents:,} {more}document{'s' if documents != 1 else ''}"
