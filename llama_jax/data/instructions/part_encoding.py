"""Text and control tokens, laid out by a template, to ids that say which of them bear loss.

What is given as text never becomes a control token. A prompt gets the ids that it has by itself, as when a model is
asked; where those open the ids of prompt and answer encoded together, the answer has the others of these."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.tokenizer import names_pattern


class Part(NamedTuple):
    """A piece of a laid-out conversation."""

    content: str | int
    """Text, or the id of a control token."""
    is_learned: bool = False


Encoded: TypeAlias = tuple[list[int], list[bool]]
"""Ids, and whether each bears loss when it is predicted."""

_ANCHORS = ("\n", ":", "a", "]")
_PROBE = "a"


class PartEncoder:
    """Encodes parts with one tokenizer.

    Args:
        tokenizer: Gives the ids. A BOS is put before the parts where its model expects one and they do not begin with
            one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names = names_pattern(tokenizer.special_tokens)
        # A space before the first word is put by some before every stretch of text, by some before the first alone.
        self._control = next(iter(tokenizer.special_tokens.items()), None)
        if self._control is not None:
            name, token = self._control
            alone = tokenizer.encode(name + _PROBE, special=True) == [token, *tokenizer.encode(_PROBE)]
            self._control = None if alone else self._control

    def __call__(self, parts: Sequence[Part]) -> Encoded:
        """Ids of the parts, opened by one BOS at the most."""
        ids: list[int] = []
        learned: list[bool] = []
        present = [part for part in parts if part.content != ""]
        for is_control, group in itertools.groupby(present, lambda part: isinstance(part.content, int)):
            stretch = list(group)
            if is_control:
                found = [int(part.content) for part in stretch], [part.is_learned for part in stretch]
            else:
                found = self._stretch(stretch, is_first=not ids)
            ids += found[0]
            learned += found[1]
        bos = self._tokenizer.bos_id
        while ids[:2] == [bos, bos]:
            ids, learned = ids[1:], learned[1:]
        if self._tokenizer.adds_bos and ids[:1] != [bos]:
            ids, learned = [bos, *ids], [False, *learned]
        return ids, learned

    def _stretch(self, parts: Sequence[Part], *, is_first: bool) -> Encoded:
        """Text between two control tokens; it may turn from prompt to answer and back."""
        text, ids, learned = "", [], []
        for is_learned, group in itertools.groupby(parts, lambda part: part.is_learned):
            content = "".join(str(part.content) for part in group)
            whole = self._in_place(text + content, is_first=is_first)
            more = whole[len(ids) :] if whole[: len(ids)] == ids else self._continued(content)
            text, ids = text + content, ids + more
            learned += [is_learned] * len(more)
        return ids, learned

    def _in_place(self, text: str, *, is_first: bool) -> list[int]:
        """Ids of a stretch of text that opens the whole, or follows a control token."""
        if is_first or self._control is None:
            return self._tokenizer.encode(text)
        name, token = self._control
        if self._names.search(text) is None:
            ids = self._tokenizer.encode(name + text, special=True)
            if ids[:1] == [token]:
                return ids[1:]
        return self._continued(text)

    def _continued(self, text: str) -> list[int]:
        """Ids of text that follows other text, without a space that the tokenizer puts before the first word."""
        for anchor in _ANCHORS:
            before, whole = self._tokenizer.encode(anchor), self._tokenizer.encode(anchor + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._tokenizer.encode(text)
