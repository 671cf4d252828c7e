"""Log-probabilities in OpenAI's two forms. They are those of the raw distribution: temperature 1, no filter, no
penalty. Tokens that end an answer and have no text are left out."""

from collections.abc import Sequence
from typing import Any

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.engine import NewToken


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[NewToken]) -> dict[str, Any]:
    """Of chats: `{"content": [{"token", "bytes", "logprob", "top_logprobs"}], "refusal": null}`."""
    content = [
        {
            **_named(tokenizer, token.id, token.logprob),
            "top_logprobs": [_named(tokenizer, other, logprob) for other, logprob in token.top],
        }
        for token in _with_text(tokenizer, tokens)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[NewToken], start: int) -> dict[str, Any]:
    """Of completions, as lists side by side.

    Args:
        start: characters of the answer before these tokens.
    """
    tokens = _with_text(tokenizer, tokens)
    texts = [_text(tokenizer, token.id) for token in tokens]
    offsets = [start + sum(map(len, texts[:number])) for number in range(len(texts))]
    top = [{_text(tokenizer, other): logprob for other, logprob in token.top} for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _with_text(tokenizer: Tokenizer, tokens: Sequence[NewToken]) -> list[NewToken]:
    control = set(tokenizer.special_tokens.values())
    return [token for token in tokens if token.finish != "stop" or token.id not in control]


def _named(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    text = _text(tokenizer, token)
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob}


def _text(tokenizer: Tokenizer, token: int) -> str:
    # Behind another token: the first of a text may lose its space.
    return tokenizer.decode([token, token])[len(tokenizer.decode([token])) :]
