"""The text of an answer whose tokens come one at a time."""

from collections.abc import Sequence

from llama_jax.data.tokenizers import Tokenizer
from llama_jax.data.tokenizers.stream_decoding import StreamDecoder

_CONTEXT = 16  # tokens of the prompt that the spelling of the answer may depend on


class AnswerText:
    """What an answer adds to the text of its prompt, up to the first place where a stop text begins.

    Args:
        prompt_ids: the prompt, since a token's spelling depends on those before it.
        stops: texts that end the answer, themselves left out; empty ones are not looked for.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop text came."""
        self._decoder = StreamDecoder(tokenizer)
        self._stops = tuple(filter(None, stops))
        self._held = ""
        for token in prompt_ids[-_CONTEXT:]:
            self._decoder.push(token)

    def push(self, token: int) -> str:
        """The text that is certain now that this token has come, often empty: no half of a character, and nothing that
        may turn out to begin a stop text."""
        return self._given(self._decoder.push(token), final=False)

    def finish(self) -> str:
        """What was held back. Nothing may be pushed afterwards."""
        return self._given(self._decoder.finish(), final=True)

    def _given(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        end = len(self._held)
        certain = end if final else end - max(map(self._begun, self._stops), default=0)
        first = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=end)
        # A longer stop text may have begun before the one that is there.
        self.stopped = first < end and first <= certain
        given, self._held = self._held[: min(first, certain)], self._held[certain:]
        return given

    def _begun(self, stop: str) -> int:
        """Characters at the end of the held text that may be the beginning of this stop text."""
        lengths = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((length for length in lengths if self._held.endswith(stop[:length])), 0)
