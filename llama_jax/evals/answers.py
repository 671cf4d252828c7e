"""Answers to many prompts; independent of tasks."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.completion import Writer, completions, usable, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Request
from llama_jax.model.llama import LanguageModel


class Answer(NamedTuple):
    """What the model writes behind one prompt."""

    text: str
    truncated: bool
    """Whether the beginning of the prompt was left out, as it did not fit into the context with the answer."""


class Answerer:
    """Continues prompts, on the mesh in use.

    Args:
        params: scanned layout, on the mesh.
        rows: answers written at a time.
        context_length: tokens of prompt and answer at the most; not above the model's.
    """

    def __init__(
        self, model: LanguageModel, params: PyTree, tokenizer: Tokenizer, *, rows: int, context_length: int
    ) -> None:
        self._model, self._params = model, params
        self._tokenizer, self._rows, self._context_length = tokenizer, rows, context_length

    @functools.cached_property
    def _writer(self) -> Writer:
        return writer(self._model, self._params, self._tokenizer)  # when it is needed: a second copy of the model

    @property
    def program_count(self) -> int:
        """Programs compiled so far."""
        return self._writer.compilations

    def answers(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, stops: Sequence[str]
    ) -> Iterator[tuple[int, Answer]]:
        """(number of the prompt, its answer), each as soon as it has ended; on every process alike.

        Args:
            prompts: token ids, at least one each; what does not fit loses its beginning.
            stops: an answer ends where the first of these texts begins, or at a token that the tokenizer says ends one.

        Raises:
            UserError: the answer alone fills the context.
            CannotGoOnError: the model's logits are not numbers.
        """
        room = self._context_length - sampling.max_new_tokens
        if room < 1:
            raise UserError(
                f"--max_new_tokens {sampling.max_new_tokens}: leaves no room for a prompt in the context of "
                f"{self._context_length} tokens"
            )
        kept = [prompt[-room:] for prompt in prompts]
        # The longest first, so that no long one is left to be written alone in the end.
        order = sorted(range(len(kept)), key=lambda number: len(kept[number]), reverse=True)
        requests = [Request(kept[number], sampling, self._writer.stop_ids, number=number) for number in order]
        for place, found in completions(self._writer, requests, stops=stops, rows=self._rows):
            number = order[place]
            yield number, Answer(usable(found).text, len(kept[number]) < len(prompts[number]))
