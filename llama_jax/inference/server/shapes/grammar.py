"""Grammars as constraints on the tokens of an answer, by llguidance.

A grammar comes from a request. It is first read in a process of its own, which may die of it, and under bounds on
what it takes there, here and at each token."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.core.processes.guarded import GuardedProcess, Request
from llama_jax.data.tokenizers import Tokenizer

if TYPE_CHECKING:
    import llguidance

LARGEST_GRAMMAR = 2**16
"""Bytes of all schemas of a request, as they are written in a grammar."""
_SECONDS, _MEMORY, _LARGEST_ANSWER = 2.0, 2**30, 2**14
_KEPT = 32
_FORCED = 256
_PROCESS = GuardedProcess(Path(__file__).with_name("grammar_worker.py"))

_AS_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""JSON as Python writes it: with a choice of white space, a small model may write nothing else."""


def json_grammar(schema: Mapping[str, Any]) -> str:
    """A JSON schema as an expression of a grammar."""
    # The library would take its options from the schema.
    return "%json " + json.dumps({**schema, "x-guidance": _AS_WRITTEN})


class TokenConstraint:
    """The `Constraint` of one answer. Made by `Grammars.constraint`."""

    def __init__(self, matcher: "llguidance.LLMatcher", ends: np.ndarray) -> None:
        self._matcher, self._ends = matcher, ends
        self.failure: str | None = None
        """Why the answer could not be held to its grammar to the end, but ended before."""

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, as bits of uint32; where there are none, those that end the answer."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(self._ends)]
        if not self._matcher.is_accepting():
            mask = mask & ~self._ends  # some models end answers with tokens that are text elsewhere
        if not self._matcher.is_error() and mask.any():
            return mask
        self.failure = self._matcher.get_error().partition("\n")[0][:200] or "the model has no token for what must come"
        return self._ends

    def push(self, token: int) -> None:
        """Go on behind a token."""
        self._matcher.consume_token(token)


class Grammars:
    """Makes constraints for the answers of one tokenizer. Used by any thread; most of its work is done without Python's
    lock."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled = functools.lru_cache(_KEPT)(self._compile)
        self._ends = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
        for token in tokenizer.stop_ids:
            self._ends[token // 32] |= np.uint32(1 << token % 32)

    def check(self, grammar: str, field: str) -> None:
        """Read a grammar, in llguidance's variant of Lark; a constraint is then made quickly.

        Args:
            field: of the request, for messages.

        Raises:
            UserError: it is wrong, or says what the library does not know, or asks for too much.
        """
        size = len(grammar.encode())
        if size > LARGEST_GRAMMAR:
            raise UserError(f"{field}: has {size} bytes as a grammar, at most {LARGEST_GRAMMAR} are allowed")
        try:
            self._compiled(grammar)
        except ValueError as error:
            raise UserError(f"{field}: {error}") from None

    def constraint(self, grammar: str) -> TokenConstraint:
        """A constraint for one answer, by a grammar that was checked."""
        return TokenConstraint(self._compiled(grammar).deep_copy(), self._ends)

    def _compile(self, grammar: str) -> "llguidance.LLMatcher":
        try:
            error = _PROCESS.ask(Request({"grammar": grammar}, _SECONDS, _MEMORY, _LARGEST_ANSWER))["error"]
        except (TimeoutError, EOFError):
            error = "asks for too much memory or time; simplify it"
        if error:
            raise ValueError(error)
        import llguidance  # when first used: it is in the extra for the server, and the settings are for all

        from llama_jax.inference.server.shapes.grammar_worker import LIMITS, complaint

        matcher = llguidance.LLMatcher(self._table, grammar, log_level=0, limits=LIMITS)
        if error := complaint(matcher):
            raise ValueError(error)
        return matcher

    @functools.cached_property
    def _table(self) -> "llguidance.LLTokenizer":
        import llguidance

        vocabulary = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer))
        return llguidance.LLTokenizer(vocabulary, eos_token=list(self._tokenizer.stop_ids))


class _Vocabulary:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        self.tokens = tokenizer.token_bytes()
        self.special_token_ids = [number for number, content in enumerate(self.tokens) if not content]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self._ids = {content: number for number, content in reversed([*enumerate(self.tokens)]) if content}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids whose bytes are the text, which the library makes the answer take where nothing else can come. As they
        stand within a text: at its beginning some tokenizers add a space."""
        # Of a longer text the library takes the first tokens, and asks again.
        content = (text if isinstance(text, bytes) else text.encode())[:_FORCED]
        ids = self._encode("\n" + content.decode(errors="replace"))
        for first in range(1, min(len(ids), 4)):
            if max(ids) < len(self.tokens) and b"".join(self.tokens[token] for token in ids[first:]) == content:
                return ids[first:]
        return self._longest_first(content)

    def _longest_first(self, content: bytes) -> list[int]:
        ids: list[int] = []
        while content:
            sizes = range(min(self._longest, len(content)), 0, -1)
            size = next((size for size in sizes if content[:size] in self._ids), 0)
            if size == 0:
                break  # the vocabulary has no token for it, so nothing can come
            ids.append(self._ids[content[:size]])
            content = content[size:]
        return ids
