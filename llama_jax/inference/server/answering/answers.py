"""The answers to one request as they come: text that is certain, token by token, for all of them."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.engine import NewToken, Request
from llama_jax.inference.server.answering.worker import Stream, Worker
from llama_jax.inference.server.metrics import Metrics
from llama_jax.inference.server.protocol.errors import ApiError
from llama_jax.inference.server.shapes.grammar import TokenConstraint
from llama_jax.inference.text import AnswerText


class Piece(NamedTuple):
    """What has come of an answer since the last piece of it."""

    answer: int
    """Number of the answer: all to the first prompt, then those to the second."""
    text: str
    """Never half a character, never part of a stop string; may be empty."""
    tokens: tuple[NewToken, ...]
    finish: Literal["stop", "length"] | None
    """Why the answer ended, in its last piece."""


class Answers:
    """Iterated once, to the end of all answers; `close` ends them before. Made by `Call.answers`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        requests: Sequence[Request],
        stops: Sequence[str],
        arrived: float,
        worker: Worker,
        metrics: Metrics,
    ) -> None:
        self.prompt_tokens = sum({request.number: len(request.prompt) for request in requests}.values())
        self.completion_tokens = 0
        """Those of all answers so far."""
        self.stream = Stream(len(requests))
        self._worker, self._metrics, self._arrived = worker, metrics, arrived
        self._texts = {index: AnswerText(tokenizer, request.prompt, stops) for index, request in enumerate(requests)}
        self._constraints = [request.constraint for request in requests]
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}

    @property
    def usage(self) -> dict[str, int]:
        """In OpenAI's form, of what has come so far."""
        both = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": both[0], "completion_tokens": both[1], "total_tokens": sum(both)}

    @property
    def unfinished(self) -> int:
        """Number of answers that go on."""
        return len(self._texts)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[Piece]:
        while self._texts:
            taken: dict[int, list[NewToken]] = {}
            for index, token in await self.stream.take():
                taken.setdefault(index, []).append(token)
            for index, tokens in taken.items():
                if index in self._texts:
                    yield self._piece(index, tokens)

    def _piece(self, index: int, tokens: Sequence[NewToken]) -> Piece:
        text, kept, parts = self._texts[index], [], []
        finish: Literal["stop", "length"] | None = None
        for token in tokens:
            kept.append(token)
            parts.append(text.push(token.id))
            if token.finish == "error":
                raise ApiError("the model gave no numbers to choose a token by", status=500)
            if text.stopped or token.finish is not None:
                finish = "stop" if text.stopped else token.finish
                break
        if finish is not None:
            self._check_constraint(index)
            parts.append(text.finish())
            del self._texts[index]
            if kept[-1].finish is None:  # a stop string: the engine does not know of it
                self._worker.cancel(self.stream, index)
        self.completion_tokens += len(kept)
        self._count(index, len(kept))
        if finish is not None:
            self._metrics.took(self._last[index] - self._first[index])
        return Piece(index, "".join(parts), tuple(kept), finish)

    def _check_constraint(self, index: int) -> None:
        constraint = self._constraints[index]
        if isinstance(constraint, TokenConstraint) and constraint.failure is not None:
            raise ApiError(f"the answer could not be held to what was asked for: {constraint.failure}", status=422)

    def _count(self, index: int, tokens: int) -> None:
        now, metrics = time.perf_counter(), self._metrics
        metrics.generated_tokens += tokens
        if index in self._last:
            metrics.time_per_token.add((now - self._last[index]) / tokens)
        else:
            metrics.time_to_first_token.add(now - self._arrived)
            self._first[index] = now
        self._last[index] = now

    def close(self) -> None:
        """End the answers that go on, and free what they hold."""
        self._worker.cancel(self.stream)
        self._metrics.cancelled_answers += len(self._texts)
        self._texts = {}
