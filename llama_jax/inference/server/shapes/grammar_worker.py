"""Tries grammars out, which come from requests and so are untrusted: for `GuardedProcess`. Imports nothing but
llguidance."""

import threading
from typing import Any

import llguidance

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=300_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What a grammar may take: to be read at all, and for each token."""

_STACK = 2**20
"""Bytes. A thread of the server has several times as much: what can be read here can be read there."""


class _Bytes:
    """A tokenizer with a token for each byte, and one that ends texts."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


_TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def complaint(matcher: llguidance.LLMatcher) -> str:
    """What is wrong with a grammar, in one line; nothing where a text may begin."""
    if not matcher.is_error():
        matcher.compute_bitmask()
    lines = matcher.get_error().splitlines() or [""]
    if lines[0].startswith("panic"):
        return "is more than can be read; simplify it"
    return lines[0].rpartition("JSON schema: ")[2].removesuffix(" <non-verbose/>")[:200]


def answer(request: dict[str, Any]) -> dict[str, str]:
    """`error`, which may be empty, for a `grammar`."""
    found: list[str] = []

    def read() -> None:
        matcher = llguidance.LLMatcher(_TOKENIZER, request["grammar"], log_level=0, limits=LIMITS)
        found.append(complaint(matcher))

    threading.stack_size(_STACK)
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return {"error": found[0]}
