"""What is served: a model, the worker that owns its engine, and how much may wait. One call is one request."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core.errors import nearest
from llama_jax.core.json_files import shown
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.server.answering.answers import Answers
from llama_jax.inference.server.answering.generation import Generation, Limits, model_defaults, requests_of
from llama_jax.inference.server.answering.logprobs import TokenNames
from llama_jax.inference.server.answering.worker import Worker
from llama_jax.inference.server.config import ServeConfig
from llama_jax.inference.server.metrics import Metrics
from llama_jax.inference.server.protocol.errors import ApiError
from llama_jax.inference.server.shapes.shape import Shapes

_LONGEST_WAIT = 120  # seconds; OpenAI's client does not come again where more is asked for


class Service:
    """All that lives as long as the server. Used by the event loop alone, but for the worker's thread."""

    def __init__(self, opened: OpenModel, worker: Worker, config: ServeConfig) -> None:
        """
        Args:
            worker: of an engine whose slots are as long as the settings say.
        """
        length = config.length or opened.model.config.context_length
        self.config, self.worker = config, worker
        self.tokenizer: Tokenizer = opened.tokenizer
        self.limits = Limits(
            vocabulary=opened.model.config.vocab_size,
            length=length,
            prompt_tokens=config.max_prompt_tokens or length,
            new_tokens=config.max_new_tokens or length,
            answers=config.max_answers,
        )
        self.shapes = Shapes(self.tokenizer)
        self.token_names = TokenNames(self.tokenizer)
        self.defaults = model_defaults(opened.files)
        self.models = _names(opened, config.name)
        """What clients call the models, with the number of the adapter of each; the first is the default."""
        self.created = int(time.time())
        self.draining = False
        """Whether what is new is refused, since the server is about to end."""
        self.metrics = Metrics()
        self.metrics.gauges = {
            "slots": ("Answers that can be written at once.", lambda: config.slots),
            "slots_active": ("Slots in use.", lambda: worker.active),
            "queue": ("Answers that wait for a slot.", lambda: worker.waiting),
            "answers_open": ("Answers that were asked for and have not ended.", lambda: worker.open_answers),
        }

    @property
    def default_model(self) -> str:
        """The name of the model that a request gets which names none."""
        return next(iter(self.models))

    def adapter(self, model: str | None) -> int | None:
        """The number of the adapter that a request names as its model.

        Raises:
            ApiError: there is no model of that name.
        """
        if model is None:
            return self.models[self.default_model]
        if model not in self.models:
            there_are = f"there is {', '.join(self.models)}{nearest(model, self.models)}"
            message = f"model: {shown(model)} does not exist; {there_are}"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return self.models[model]

    def check_queue(self, answers: int) -> None:
        """Refuse so many answers where too many wait.

        Raises:
            ApiError: they do; come back later.
        """
        most, there = self.config.slots + self.config.max_queue, self.worker.open_answers
        if there + answers > most:
            wait = math.ceil(self.metrics.seconds_per_answer * (there + answers - most) / self.config.slots)
            raise ApiError(
                f"{there} answers are being written or wait, and {most} are the most; try again later",
                status=429,
                code="queue_full",
                headers={"retry-after": str(min(max(wait, 1), _LONGEST_WAIT))},
            )


@dataclass
class Call:
    """One request, from its arrival to the end of its answer."""

    service: Service
    body: Mapping[str, Any]
    """The JSON object that was sent; nothing where no body is expected."""
    path: Mapping[str, str]
    """The variable parts of the route's path."""
    id: str
    """Of 32 hexadecimal digits; goes into the ids of answers."""
    arrived: float
    """By `time.perf_counter`."""
    time: int
    """The same in seconds since 1970."""
    _answers: Answers | None = None

    async def answers(self, prompts: Sequence[Sequence[int]], how: Generation) -> Answers:
        """Have the engine answer prompts; returns when it has accepted them. Once a call.

        Raises:
            ApiError: they do not fit, or too many answers wait.
        """
        service = self.service
        requests = requests_of(prompts, how, service.limits)
        service.check_queue(len(requests))
        self._answers = Answers(service.tokenizer, requests, how.stops, self.arrived, service.worker, service.metrics)
        await service.worker.submit(requests, self._answers.stream)
        service.metrics.prompt_tokens += self._answers.prompt_tokens
        return self._answers

    def close(self) -> None:
        """End the answers that go on."""
        if self._answers is not None:
            self._answers.close()


def _names(opened: OpenModel, name: str | None) -> dict[str, int | None]:
    base = name or _last_part(opened.source.partition(" with ")[0])
    if len(opened.adapters) == 1:  # part of the model
        return {name or _last_part(opened.adapters[0]): None}
    short = [_last_part(adapter) for adapter in opened.adapters]
    clear = len({base, *short}) == 1 + len(short)
    return {base: None} | {name: number for number, name in enumerate(short if clear else opened.adapters)}


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
