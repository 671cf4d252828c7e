"""What a reward model says of whole texts, each by itself. Knows token ids, not text."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core import placing, sharding
from llama_jax.core.arrays import Array, Float, Int, PyTree
from llama_jax.model.llama import LanguageModel


class TextScorer:
    """Scores texts in batches of a few fixed shapes, on the mesh in use.

    Args:
        model: a reward model.
        params: scanned layout, on the mesh.
        rows: rows of a batch, rounded up to what the mesh divides.
        context_length: tokens that a row holds at the most; not above the model's.
    """

    def __init__(self, model: LanguageModel, params: PyTree, *, rows: int, context_length: int) -> None:
        self._model, self._params = model, params
        self._rows, self._context_length = placing.padded_rows(rows), context_length
        self.lengths: set[int] = set()
        """Of rows, that a program was compiled for so far."""

    def scores(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
        """(number of the text, its score at its last token), the longest first. Every process gives all texts and gets
        all scores. What does not fit into a row loses its beginning.

        Args:
            texts: token ids, at least one each.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            if not len(text):
                raise ValueError(f"text {number} has no tokens")
            by_length[placing.padded_length(len(text), self._context_length)].append(number)
        self.lengths |= by_length.keys()
        for length in sorted(by_length, reverse=True):
            for first in range(0, len(by_length[length]), self._rows):
                numbers = by_length[length][first : first + self._rows]
                kept = [texts[number][-length:] for number in numbers]
                yield from zip(numbers, self._batch(kept, length), strict=True)

    def _batch(self, texts: Sequence[Sequence[int]], length: int) -> list[float]:
        tokens, ends = np.zeros((self._rows, length), np.int32), np.zeros(self._rows, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], ends[row] = text, len(text) - 1
        found = _end_scores(self._model, self._params, *map(placing.placed_rows, (tokens, ends)))
        return np.asarray(found)[: len(texts)].tolist()


@functools.partial(jax.jit, static_argnums=0)
def _end_scores(
    model: LanguageModel, params: PyTree, tokens: Int[Array, "B T"], ends: Int[Array, "B"]
) -> Float[Array, "B"]:
    """Whole on every process. Padding lies behind all that is read, where the causal mask hides it."""
    hidden = sharding.constrain(model.hidden(params, tokens), ("batch",))
    last = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]
    return sharding.constrain(model.scores(params, last), (None,))
