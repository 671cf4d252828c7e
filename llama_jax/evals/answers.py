"""Answers to many prompts, in batches of similar length; independent of tasks."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.completion import Writer, complete, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.decode import PROMPT_BUCKET
from llama_jax.model.llama import LanguageModel


class Answer(NamedTuple):
    """What the model writes behind one prompt."""

    text: str
    truncated: bool
    """Whether the beginning of the prompt was left out, as it did not fit into the context with the answer."""


class Answerer:
    """Continues prompts in batches, on the mesh in use.

    Args:
        params: scanned layout, on the mesh.
        rows: prompts of a batch.
        context_length: tokens of prompt and answer at the most; not above the model's.
    """

    def __init__(
        self, model: LanguageModel, params: PyTree, tokenizer: Tokenizer, *, rows: int, context_length: int
    ) -> None:
        self._model, self._params = model, params
        self._tokenizer, self._rows, self._context_length = tokenizer, rows, context_length
        self.programs: set[tuple[int, SamplingConfig]] = set()
        """Length of the prompts and sampling of each program that was compiled so far."""

    @functools.cached_property
    def _writer(self) -> Writer:
        return writer(self._model, self._params, self._tokenizer)  # when it is needed: a second copy of the model

    def answers(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stops: Sequence[str]
    ) -> Iterator[tuple[int, Answer]]:
        """(number of the prompt, its answer), batch by batch, the longest first; on every process alike.

        Args:
            prompts: token ids, at least one each; what does not fit loses its beginning.
            stops: an answer ends where the first of these texts begins, or at a token that the tokenizer says ends one.

        Raises:
            UserError: the answer alone fills the context.
        """
        room = self._context_length - sampling.max_new_tokens
        if room < 1:
            raise UserError(
                f"--max_new_tokens {sampling.max_new_tokens}: leaves no room for a prompt in the context of "
                f"{self._context_length} tokens"
            )
        kept = [list(prompt[-room:]) for prompt in prompts]
        order = sorted(range(len(kept)), key=lambda number: len(kept[number]), reverse=True)
        for first in range(0, len(order), self._rows):
            batch = order[first : first + self._rows]
            # A last batch of fewer rows would be another program.
            padding = [batch[-1]] * (self._rows - len(batch))
            rows = [kept[number] for number in batch + padding]
            self.programs.add((-(-len(rows[0]) // PROMPT_BUCKET), sampling))
            for number, answer in zip(batch, complete(self._writer, rows, sampling), strict=False):
                yield number, Answer(_cut(answer.text, stops), len(kept[number]) < len(prompts[number]))


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]
