"""A model on this machine."""

from collections.abc import Callable, Iterator, Sequence

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.data.chat import encode_chat
from llama_jax.data.instructions.chat import ChatTemplate
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference import engine
from llama_jax.inference.completion import completions, encode_prompt, usable, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.instruct.generators.requests import Answer, Lost, Request

_LEAST_TOKENS = 16
_PROBE = "user-turn"


class LocalModel:
    """A generator on the mesh in use.

    Args:
        fingerprint: Of the parameters.
        rows: Requests that are answered at a time.
    """

    def __init__(self, opened: OpenModel, fingerprint: str, rows: int) -> None:
        self._tokenizer, self._context = opened.tokenizer, opened.model.config.context_length
        self._writer = writer(opened.model, opened.params, opened.tokenizer)
        self._rows = rows
        self.identity = f"model {fingerprint} {opened.tokenizer.fingerprint}"
        self.chats = opened.tokenizer.chat_template is not None

    def answers(
        self, requests: Sequence[Request], stopping: Callable[[], bool], lost: Lost
    ) -> Iterator[tuple[int, Answer]]:
        """See `Generator`. An answer depends on its request alone, so what is under way when this is to end is left,
        and comes out the same next time."""
        ids = [self._encoded(request) for request in requests]
        for stops in dict.fromkeys(request.stop for request in requests):
            alike = [number for number, request in enumerate(requests) if request.stop == stops]
            fits = [number for number in alike if self._context - len(ids[number]) >= _LEAST_TOKENS]
            for number in sorted(set(alike) - set(fits)):
                yield number, Answer("", "too_long", len(ids[number]))
            if stopping() or not fits:
                continue
            asked = [self._asked(requests[number], ids[number]) for number in fits]
            rows = min(self._rows, len(fits))
            for place, found in completions(self._writer, asked, stops=stops, rows=rows):
                number, found = fits[place], usable(found)
                finish = "length" if found.finish == "length" else "stop"
                yield number, Answer(found.text, finish, len(ids[number]), len(found.ids))
                if stopping():
                    return

    def _asked(self, request: Request, ids: Sequence[int]) -> engine.Request:
        most = min(request.max_new_tokens, self._context - len(ids))
        penalty = request.presence_penalty
        sampling = SamplingConfig(most, request.temperature, top_p=request.top_p, presence_penalty=penalty)
        return engine.Request(ids, sampling, self._writer.stop_ids, request.seed)

    def _encoded(self, request: Request) -> list[int]:
        if isinstance(request.prompt, str):
            return encode_prompt(self._tokenizer, request.prompt)
        return encode_chat(self._tokenizer, request.prompt)


def user_opening(tokenizer: Tokenizer) -> str | None:
    """What a model's chat template writes before what a user says, or None of a model without one."""
    if tokenizer.chat_template is None:
        return None
    template = ChatTemplate(tokenizer.chat_template, tokenizer.token_names)
    text = template.render([{"role": "user", "content": _PROBE}], add_generation_prompt=False)
    return text.partition(_PROBE)[0]
