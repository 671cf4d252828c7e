"""Log-probabilities in OpenAI's two forms. They are those of the raw distribution: temperature 1, no filter, no
penalty. Control tokens that end an answer are left out: they are no part of its text."""

from collections.abc import Sequence
from typing import Any

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.engine import NewToken


class TokenNames:
    """What tokens are called: their text, `bytes:` and the bytes where these are no whole characters, and the names of
    control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes()
        self._control = {token: name for name, token in tokenizer.special_tokens.items()}
        self._known: dict[int, tuple[str, bytes]] = {}

    def __getitem__(self, token: int) -> tuple[str, bytes]:
        """The name of a token, and what it adds to a text (of a control token its name)."""
        if token not in self._known:  # looked up twenty times a token, where so many alternatives are asked for
            self._known[token] = self._named(token)
        return self._known[token]

    def _named(self, token: int) -> tuple[str, bytes]:
        if token in self._control:
            return self._control[token], self._control[token].encode()
        content = self._bytes[token] if token < len(self._bytes) else b""  # the table may have rows to spare
        try:
            return content.decode(), content
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), content

    def with_text(self, tokens: Sequence[NewToken]) -> list[NewToken]:
        """Without a control token that ended the answer."""
        return [token for token in tokens if token.finish != "stop" or token.id not in self._control]


def chat_logprobs(names: TokenNames, tokens: Sequence[NewToken]) -> dict[str, Any]:
    """Of chats: `{"content": [{"token", "bytes", "logprob", "top_logprobs"}], "refusal": null}`."""

    def named(token: int, logprob: float | None) -> dict[str, Any]:
        name, content = names[token]
        return {"token": name, "bytes": list(content), "logprob": logprob}

    content = [
        {**named(token.id, token.logprob), "top_logprobs": [named(*other) for other in token.top]}
        for token in names.with_text(tokens)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(names: TokenNames, tokens: Sequence[NewToken], start: int) -> dict[str, Any]:
    """Of completions, as lists side by side.

    Args:
        start: characters of the answer before these tokens.
    """
    told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    text = b""
    for token in names.with_text(tokens):
        name, content = names[token.id]
        told["tokens"].append(name)
        told["token_logprobs"].append(token.logprob)
        told["top_logprobs"].append({names[other][0]: logprob for other, logprob in token.top})
        told["text_offset"].append(start + len(text.decode(errors="ignore")))
        text += content
    return told
