"""Text of token ids that come one at a time."""

from llama_jax.data.tokenizers import Tokenizer

_HELD_BACK = 3  # U+FFFD at the end, which may become one character: sentencepiece gives one for each byte of it
_WINDOW, _KEPT = 16, 8  # tokens; a character has at most 4 bytes, so what comes never changes the text before


class StreamDecoder:
    """Decodes token by token: the texts given, laid end to end, are `tokenizer.decode` of all ids, and none ends in
    the middle of a character.

    Each token decodes a short window of the last ones, so its cost does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = frozenset(tokenizer.special_tokens.values())
        self._window: list[int] = []
        self._given = 0  # characters of the window's text

    def push(self, token: int) -> str:
        """The text that is certain now that this token has come; often empty."""
        if self._repeats_control(token):
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        certain = self._certain(text)
        new = text[self._given : certain]
        self._given = max(self._given, certain)
        if len(self._window) > _WINDOW:
            self._shorten()
        return new

    def finish(self) -> str:
        """What was held back. Nothing may be pushed afterwards."""
        return self._tokenizer.decode(self._window)[self._given :]

    @staticmethod
    def _certain(text: str) -> int:
        """Number of characters that tokens to come cannot change."""
        return max(len(text.rstrip("\ufffd")), len(text) - _HELD_BACK)

    def _repeats_control(self, token: int) -> bool:
        """Whether the window ends in control tokens with this one among them: another changes nothing."""
        for last in reversed(self._window):
            if last not in self._control:
                return False
            if last == token:
                return True
        return False

    def _shorten(self) -> None:
        """Forget the oldest tokens, if the others give text by themselves: a first token may lose its space."""
        kept = self._window[-_KEPT:]
        text = self._tokenizer.decode(kept)
        if certain := self._certain(text):
            self._window, self._given = kept, certain
