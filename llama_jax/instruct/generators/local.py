"""A model on this machine, in batches."""

from collections.abc import Callable, Iterator, Sequence

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.data.chat import encode_chat
from llama_jax.data.instructions.chat import ChatTemplate
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.completion import complete, encode_prompt, writer
from llama_jax.inference.config import SamplingConfig
from llama_jax.instruct.generators.requests import Answer, Lost, Request

_LEAST_TOKENS = 16
_LENGTHS = 64
"""Answers that are bounded by the context end at a multiple of this, so that few programs are compiled."""
_PROBE = "user-turn"


class LocalModel:
    """A generator on the mesh in use.

    Args:
        fingerprint: Of the parameters.
        rows: Requests of a batch.
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
        """See `Generator`. A batch is answered as a whole, so that after an interruption the others have the rows, and
        with them the randomness, that they would have had."""
        ids = [self._encoded(request) for request in requests]
        fits = [number for number, prompt in enumerate(ids) if self._room(prompt) >= _LEAST_TOKENS]
        for number in set(range(len(ids))) - set(fits):
            yield number, Answer("", "too_long", len(ids[number]))
        # The longest first, and those together that are sampled alike.
        order = sorted(fits, key=lambda number: (_sampled(requests[number]), -len(ids[number])))
        start = 0
        while start < len(order) and not stopping():
            same = [n for n in order[start : start + self._rows] if _alike(requests, n, order[start])]
            start += len(same)
            yield from zip(same, self._batch([requests[n] for n in same], [ids[n] for n in same]), strict=True)

    def _batch(self, requests: Sequence[Request], ids: Sequence[Sequence[int]]) -> list[Answer]:
        first, room = requests[0], min(map(self._room, ids))
        most = first.max_new_tokens if first.max_new_tokens <= room else max(_LEAST_TOKENS, room // _LENGTHS * _LENGTHS)
        sampling = SamplingConfig(most, first.temperature, 0, first.top_p)
        # A batch of fewer rows would be another program.
        rows = [*ids, *[ids[-1]] * (self._rows - len(ids))]
        found = complete(self._writer, rows, sampling, seed=first.seed)
        answers = []
        for request, prompt, completion in zip(requests, ids, found, strict=False):
            cut = min((at for stop in request.stop if (at := completion.text.find(stop)) >= 0), default=None)
            ended = cut is not None or completion.ids[-1] in self._writer.stop_ids
            text = completion.text[:cut]
            answers.append(Answer(text, "stop" if ended else "length", len(prompt), len(completion.ids)))
        return answers

    def _room(self, prompt: Sequence[int]) -> int:
        return self._context - len(prompt)

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


def _sampled(request: Request) -> tuple[float, float, int]:
    return request.temperature, request.top_p, request.max_new_tokens


def _alike(requests: Sequence[Request], one: int, other: int) -> bool:
    return _sampled(requests[one]) == _sampled(requests[other])
