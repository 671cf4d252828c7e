"""An OpenAI-compatible endpoint, through OpenAI's own client (extra `api`): several requests at once, repeated where
that helps, never beyond the budget."""

import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.instruct.config import EndpointConfig
from llama_jax.instruct.generators.budget import Budget, Pace, pause
from llama_jax.instruct.generators.requests import Answer, Lost, Request

_LONGEST_WAIT = 120.0
"""Seconds that a server may ask to be left alone for; one that asks for more has something else to say."""
_LEAST_TOKENS = 16
_TOKENS_AROUND = 64
"""Of a chat template around a request, at the most."""


class Endpoint:
    """A generator behind an address.

    Raises:
        UserError: the client is not installed, or there is no key.
    """

    chats = True

    def __init__(self, config: EndpointConfig) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("endpoint.model: needs OpenAI's client; pip install 'llama_jax[api]'") from None
        url = config.url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(config.key_variable)
        if key is None and url is None:
            raise UserError(f"endpoint.key_variable: the environment has no {config.key_variable}; put the key there")
        self._openai, self._config = openai, config
        self._client = openai.OpenAI(api_key=key or "none", base_url=url, timeout=config.timeout_seconds, max_retries=0)
        self.identity = f"endpoint {config.model}"
        self.budget = Budget(config)
        self._pace = Pace(config.requests_per_minute)

    def answers(
        self, requests: Sequence[Request], stopping: Callable[[], bool], lost: Lost
    ) -> Iterator[tuple[int, Answer]]:
        """See `Generator`. What is under way when something goes wrong is waited for, since it is paid for."""
        waiting = deque(enumerate(requests))
        running: dict[Future[tuple[Answer, int]], int] = {}
        trouble: Exception | None = None
        halted = False

        def ending() -> bool:
            return halted or stopping()

        with ThreadPoolExecutor(self._config.concurrency) as threads:
            while True:
                while waiting and len(running) < self._config.concurrency and not ending() and self.budget.admits:
                    number, request = waiting.popleft()
                    self.budget.begin(*_most_tokens(request))
                    running[threads.submit(self._answer, request, ending)] = number
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    self.budget.end(*_most_tokens(requests[number]))
                    try:
                        answer, losses = future.result()
                    except _Given as given:
                        trouble, losses, answer, halted = trouble or given.error, given.losses, None, True
                    for _ in range(losses):
                        self.budget.spend(*_most_tokens(requests[number]))
                        lost(*_most_tokens(requests[number]))
                    if answer is not None:
                        self.budget.spend(answer.tokens_in, answer.tokens_out)
                        yield number, answer
        if trouble is not None:
            raise trouble
        if waiting and not stopping():
            raise CannotGoOnError(
                f"endpoint.budget: ${self.budget.spent:.4f} of ${self._config.budget:g} are spent; answers so far are "
                "kept, and a larger budget goes on from here"
            )

    def _answer(self, request: Request, ending: Callable[[], bool]) -> tuple[Answer, int]:
        """The answer, and how many times one was lost before it came.

        Raises:
            _Given: it was given up.
        """
        tokens, losses, attempt, api = request.max_new_tokens, 0, 0, self._openai
        while True:
            attempt += 1
            self._pace.wait(ending)
            if ending():
                raise _Given(None, losses)
            try:
                return self._asked(request, tokens), losses
            except api.BadRequestError as error:
                if not _is_too_long(error):
                    raise _Given(UserError(f"endpoint: {_in_words(error)}"), losses) from None
                tokens, attempt = int(tokens * 0.8), attempt - 1
                if tokens < _LEAST_TOKENS:
                    return Answer("", "too_long"), losses
                continue
            except (api.APITimeoutError, api.APIConnectionError, ValueError) as error:
                # A request that was sent may have been worked on, and be paid for. The first is a kind of the second.
                losses += not _was_refused(error)
                problem, seconds = error, None
            except api.APIStatusError as error:
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise _Given(UserError(f"endpoint: {_in_words(error)}"), losses) from None
                problem, seconds = error, _asked_to_wait(error.response.headers)
                if error.code == "insufficient_quota" or (seconds or 0) > _LONGEST_WAIT:
                    attempt = self._config.attempts
            if attempt >= self._config.attempts:
                end = (
                    f"{_in_words(problem)} (attempt {attempt}); answers so far are kept, run the same command to go on"
                )
                raise _Given(CannotGoOnError(f"endpoint: {end}"), losses) from None
            own = min(2.0 ** (attempt - 1), 60.0) * random.uniform(0.75, 1.0)
            pause(own if seconds is None else seconds, ending)

    def _asked(self, request: Request, tokens: int) -> Answer:
        optional: dict[str, Any] = {
            "presence_penalty": request.presence_penalty or None,
            "stop": list(request.stop) or None,
            "seed": request.seed if self._config.send_seed else None,
        }
        given = {"model": self._config.model, "temperature": request.temperature, "top_p": request.top_p}
        given |= {name: value for name, value in optional.items() if value is not None}
        if isinstance(request.prompt, str):
            found = self._client.completions.create(prompt=request.prompt, max_tokens=tokens, **given)
        else:
            messages: Any = [dict(message) for message in request.prompt]
            found = self._client.chat.completions.create(messages=messages, max_completion_tokens=tokens, **given)
        return _answer_in(found, request)


class _Given(Exception):
    """A request that was given up: with the error that ends the run, or None where it ends anyway; and its losses."""

    def __init__(self, error: Exception | None, losses: int) -> None:
        super().__init__(error)
        self.error, self.losses = error, losses


def _most_tokens(request: Request) -> tuple[int, int]:
    """What a request takes at the most: no token is shorter than a byte."""
    parts = 1 if isinstance(request.prompt, str) else len(request.prompt)
    return request.length + _TOKENS_AROUND * parts, request.max_new_tokens


def _answer_in(found: Any, request: Request) -> Answer:
    """What a response says.

    Raises:
        ValueError: it has no answer in it.
    """
    choices = getattr(found, "choices", None)
    if not choices:
        raise ValueError("the answer holds no choice")
    choice, is_text = choices[0], isinstance(request.prompt, str)
    text = getattr(choice, "text", None) if is_text else getattr(getattr(choice, "message", None), "content", None)
    usage = getattr(found, "usage", None)
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    counted = [most if count is None else int(count) for count, most in zip(tokens, _most_tokens(request), strict=True)]
    if choice.finish_reason == "content_filter" or (text is None and getattr(choice, "message", None)):
        return Answer("", "filtered", *counted)
    finish = "length" if choice.finish_reason == "length" else "stop"
    # A lone surrogate, which JSON can spell, is not text.
    return Answer(str(text or "").encode(errors="replace").decode(), finish, *counted)


def _is_too_long(error: Any) -> bool:
    said = f"{error.code} {error.message}".lower()
    return any(words in said for words in ("context_length", "context length", "model's context", "reduce your prompt"))


def _was_refused(error: Exception) -> bool:
    """Whether nothing listens there, so that nothing was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the server wants to be asked again."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
