"""The one scorer: how likely a model finds given continuations of given contexts. Knows tokens, but no task."""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core import placing, sharding
from llama_jax.core.arrays import Array, Bool, Float, Int, PyTree
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.cross_entropy import logprobs_of
from llama_jax.objectives.token_logprobs import by_chunks

SHORTEST_ROW = 16
"""Rows are padded to this many tokens, to half as many more, to twice as many, and so on: few programs are compiled."""
FEWEST_TARGETS = 4
"""The scored tokens of a row are padded to this many, four times as many, and so on."""

REQUESTS_CHUNK = 16384
"""Requests made and sorted at a time: enough for full batches of one length, without holding all of a large task."""

Document = TypeVar("Document")


class Request(NamedTuple):
    """Token ids whose log-probability is asked for, and those before them; at least one of each."""

    context: Int[np.ndarray, "context"]
    continuation: Int[np.ndarray, "continuation"]


class Score(NamedTuple):
    """What the model thinks of one continuation."""

    logprob: float
    """Sum of log p(token | all tokens before it) over the continuation, in nats."""
    tokens: int
    """Tokens that were scored: the continuation, or as much of its end as the model's context holds."""
    greedy: bool
    """Whether each of them is the most likely one, so that greedy decoding would write the continuation."""
    truncated: bool
    """Whether context and continuation together did not fit, so that tokens were left out at the beginning."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """The tokens of both texts together, cut where the context ends, as lm-evaluation-harness does (`_encode_pair`):
    spaces that end the context go to the continuation, as they belong to the token of its first word. BOS comes first
    where the tokenizer is meant to add it; an empty context is BOS alone."""
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        return request_of([tokenizer.bos_id], tokenizer.encode(continuation))
    before = tokenizer.encode(stripped, bos=tokenizer.adds_bos)
    whole = tokenizer.encode(stripped + continuation, bos=tokenizer.adds_bos)
    cut = min(len(before), len(whole) - 1)  # where both grow into one token, that one is scored
    return request_of(before[:cut], whole[cut:])


def request_of(context: Sequence[int], continuation: Sequence[int]) -> Request:
    """A request for token ids."""
    return Request(np.array(context, np.int32), np.array(continuation, np.int32))


class _Asked(NamedTuple):
    """What one request wants of a row: the log-probabilities of its last tokens."""

    number: int
    targets: Int[np.ndarray, "targets"]
    truncated: bool


class _Row(NamedTuple):
    """Tokens that are read once for all requests that differ in their last token only."""

    tokens: Int[np.ndarray, "tokens"]
    asked: list[_Asked]

    @property
    def targets(self) -> int:
        return sum(len(asked.targets) for asked in self.asked)


class Scorer:
    """Scores requests in batches of a few fixed shapes, on the mesh in use.

    Args:
        params: scanned layout, on the mesh.
        rows: rows of a batch, rounded up to what the mesh divides.
        context_length: tokens that a row holds at the most; not above the model's.
    """

    def __init__(self, model: LanguageModel, params: PyTree, *, rows: int, context_length: int) -> None:
        self._model, self._params = model, params
        self._rows, self._context_length = placing.padded_rows(rows), context_length
        self.programs: set[tuple[int, int]] = set()
        """(tokens, targets) of a row in each program that was compiled so far."""

    @property
    def program_count(self) -> int:
        """Programs compiled so far."""
        return len(self.programs)

    def scores(self, requests: Sequence[Request]) -> Iterator[tuple[int, Score]]:
        """(number of the request, its score), batch by batch, the longest first. Every process gives all requests and
        gets all scores. What does not fit into a row loses its beginning."""
        running = None
        for batch, length in self._batches(requests):
            started = batch, self._start(batch, length)
            if running is not None:
                yield from _read(*running)  # while the next batch is computed
            running = started
        if running is not None:
            yield from _read(*running)

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[list[_Row], int]]:
        """Rows of similar length, and the length they are padded to."""
        sharing: dict[bytes, _Row] = {}
        for number, request in enumerate(requests):
            tokens = np.concatenate(request)
            kept = tokens[-self._context_length - 1 :]
            targets = request.continuation[-len(kept) + 1 :]
            row = sharing.setdefault(kept[:-1].tobytes(), _Row(kept[:-1], []))
            row.asked.append(_Asked(number, targets, len(kept) < len(tokens)))
        by_length: dict[int, list[_Row]] = defaultdict(list)
        for row in sharing.values():
            by_length[padded_length(len(row.tokens), self._context_length)].append(row)
        for length in sorted(by_length, reverse=True):
            rows = sorted(by_length[length], key=lambda row: row.targets, reverse=True)
            for first in range(0, len(rows), self._rows):
                yield rows[first : first + self._rows], length

    def _start(self, batch: list[_Row], length: int) -> tuple[Array, Array]:
        most = FEWEST_TARGETS
        while most < batch[0].targets:
            most *= 4
        self.programs.add((length, most))
        tokens = np.zeros((self._rows, length), np.int32)
        positions, targets = np.zeros((2, self._rows, most), np.int32)
        for index, row in enumerate(batch):
            tokens[index, : len(row.tokens)] = row.tokens
            ends = [np.arange(-len(asked.targets), 0) + len(row.tokens) for asked in row.asked]
            positions[index, : row.targets] = np.concatenate(ends)
            targets[index, : row.targets] = np.concatenate([asked.targets for asked in row.asked])
        return _target_logprobs(self._model, self._params, *map(placing.placed_rows, (tokens, positions, targets)))


def document_scores(
    documents: Mapping[int, Document], requests_of: Callable[[Document], Sequence[Request]], scorer: Scorer
) -> Iterator[tuple[int, list[Score]]]:
    """(number of the document, scores of its requests), in the order in which they become known."""
    waiting: list[tuple[int, Request]] = []
    for number, document in documents.items():
        waiting += ((number, request) for request in requests_of(document))
        if len(waiting) >= REQUESTS_CHUNK:
            yield from _whole_documents(waiting, scorer)
            waiting = []
    yield from _whole_documents(waiting, scorer)


def _whole_documents(waiting: Sequence[tuple[int, Request]], scorer: Scorer) -> Iterator[tuple[int, list[Score]]]:
    asked, known = Counter(number for number, _ in waiting), defaultdict[int, dict[int, Score]](dict)
    for index, score in scorer.scores([request for _, request in waiting]):
        number = waiting[index][0]
        known[number][index] = score
        if len(known[number]) == asked[number]:
            yield number, [score for _, score in sorted(known[number].items())]


def padded_length(tokens: int, longest: int) -> int:
    """Length that a row of so many tokens is padded to: 16, 24, 32, 48, 64, 96, …, at most `longest`."""
    length = SHORTEST_ROW
    while length < tokens:
        length += length // 2 if length & (length - 1) == 0 else length // 3
    return min(length, longest)


def _read(batch: list[_Row], results: tuple[Array, Array]) -> Iterator[tuple[int, Score]]:
    logprobs, greedy = map(np.asarray, results)
    for index, row in enumerate(batch):
        start = 0
        for asked in row.asked:
            own = slice(start, start := start + len(asked.targets))
            total = float(logprobs[index, own].sum(dtype=np.float64))
            yield asked.number, Score(total, len(asked.targets), bool(greedy[index, own].all()), asked.truncated)


@functools.partial(jax.jit, static_argnums=0)
def _target_logprobs(
    model: LanguageModel,
    params: PyTree,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B C"],
    targets: Int[Array, "B C"],
) -> tuple[Float[Array, "B C"], Bool[Array, "B C"]]:
    """Log-probability of each of C targets a row, given the tokens up to its position, in nats (float32), and whether
    it is the most likely token there; whole on every process."""

    def of_chunk(logits: Array, targets: Array) -> tuple[Array, Array]:
        return logprobs_of(logits, targets)[0], jnp.argmax(logits, axis=-1) == targets

    head = model.head(params)
    # Padding lies behind all that is scored, where the causal mask hides it: there are no segments to keep apart.
    hidden = sharding.constrain(model.hidden(params, tokens), ("batch",))
    wanted = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    logprobs, greedy = by_chunks(of_chunk, model.unembed, head, wanted, targets)
    return sharding.constrain(logprobs, (None, None)), sharding.constrain(greedy, (None, None))
