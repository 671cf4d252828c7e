"""A conversation with a model: what was said, how to answer, and answers piece by piece. Knows no terminal."""

import dataclasses
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import jax

from llama_jax.checkpoints.opening import OpenModel
from llama_jax.core.errors import UserError, nearest
from llama_jax.core.placing import padded_rows
from llama_jax.data.chat import encode_chat
from llama_jax.inference.completion import Completion, encode_prompt, usable, writer
from llama_jax.inference.config import ChatConfig, SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.text import AnswerText

LONGEST = 4096
"""Tokens of a conversation at the most, where nobody says: the cache of some models would not fit otherwise."""


@dataclass
class Turn:
    """What was asked, and what came of it."""

    question: str
    answer: str = ""
    attempt: int = 0
    """How many answers to it were thrown away."""
    tokens: int = 0
    """Of the answer."""
    tokens_per_second: float | None = None
    """From the first token to the last; None where there are no two."""


class Conversation:
    """Made with the mesh in use. A model without a chat template continues each message, and remembers none.

    Raises:
        UserError: the settings do not fit the model.
    """

    def __init__(self, config: ChatConfig, opened: OpenModel, say: Callable[[str], None]) -> None:
        """
        Args:
            say: told what takes its time.
        """
        if jax.process_count() > 1:
            raise UserError(f"chat: {jax.process_count()} processes cannot talk to one person; start one")
        context_length = opened.model.config.context_length
        if config.length is not None and config.length > context_length:
            raise UserError(f"--length {config.length}: the model's context is {context_length}")
        self.tokenizer, self.adapters = opened.tokenizer, opened.adapters
        self.is_chat = self.tokenizer.chat_template is not None
        """Whether the model has a chat template."""
        self.turns: list[Turn] = []
        self.sampling = SamplingConfig(**{name: getattr(config, name) for name in _names(SamplingConfig)})
        self.seed = config.seed
        self.adapter: int | None = 0 if len(self.adapters) > 1 else None
        """Number of the adapter that answers, of several; None: the only one, or the base alone."""
        self._system: str | None = None
        if config.system is not None:
            self.system = config.system
        layers = writer(opened.model, opened.params, opened.tokenizer).layers
        length = config.length or min(context_length, LONGEST)
        self._engine = Engine(opened.model, layers, slots=padded_rows(1), length=length)
        say("compiling...")
        self._engine.warm_up()

    @property
    def system(self) -> str | None:
        """What the model is told before the conversation."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if not self.is_chat:
            raise UserError("system: the model has no chat template, so nothing can be told it before a text")
        self._system = text

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was said and answered, as chat templates and OpenAI's API have it."""
        system = [] if self.system is None else [("system", self.system)]
        answered = [turn for turn in self.turns if turn.answer]  # most templates want messages and answers in turn
        said = [said for turn in answered for said in (("user", turn.question), ("assistant", turn.answer))]
        return [{"role": role, "content": text} for role, text in system + said]

    @property
    def settings(self) -> dict[str, Any]:
        """What `change` may be told, with the present values."""
        return {**vars(self.sampling), "seed": self.seed}

    def change(self, name: str, value: str) -> None:
        """Change a setting of the answers to come.

        Raises:
            UserError: there is none of this name, or the value is none for it.
        """
        if name not in self.settings:
            raise UserError(
                f"{name}: unknown setting; there are {', '.join(self.settings)}{nearest(name, self.settings)}"
            )
        kind = type(self.settings[name])
        try:
            number = kind(value)
        except ValueError:
            raise UserError(f"{name}: '{value}' must be a {'whole ' * (kind is int)}number") from None
        if name == "seed":
            self.seed = number
        else:
            self.sampling = dataclasses.replace(self.sampling, **{name: number})

    def choose_adapter(self, name: str) -> None:
        """Let another adapter answer: one of `adapters`, by its number from 1 or a part of its name that no other has;
        or `none`, the base alone.

        Raises:
            UserError: there is no such adapter, or there are not several.
        """
        if len(self.adapters) < 2:
            raise UserError("adapter: there are not several to choose from; start with --adapters '[A, B]'")
        alike = [number for number, known in enumerate(self.adapters) if name in known]
        numbers = [number for number, known in enumerate(self.adapters) if name in (known, str(number + 1))] or alike
        if name != "none" and len(numbers) != 1:
            raise UserError(f"adapter: '{name}' is not one of {', '.join(self.adapters)} or none")
        self.adapter = None if name == "none" else numbers[0]

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer to a message, piece by piece. Iterating to the end, or closing the iterator before, ends it; where
        it cannot even begin, there was no such message.

        Raises:
            UserError: the conversation has become too long, or the chat template refuses it.
            CannotGoOnError: the model's logits are not numbers.
        """
        self.turns.append(Turn(question))
        return self._answered(self.turns[-1], None)

    def regenerate(self) -> Generator[str, None, None]:
        """Another answer to the last message, in place of the one it has.

        Raises:
            UserError: nothing was said yet; else as `ask`.
        """
        if not self.turns:
            raise UserError("regenerate: nothing was said yet")
        last = self.turns.pop()
        self.turns.append(Turn(last.question, attempt=last.attempt + 1))
        return self._answered(self.turns[-1], last)

    def _answered(self, turn: Turn, otherwise: Turn | None) -> Generator[str, None, None]:
        """Write the answer of the last turn; should that fail, `otherwise` is in its place again."""
        try:
            request = self._request(turn)
            handle = self._engine.submit(request)
        except Exception:
            self.turns[-1:] = [otherwise] if otherwise else []
            raise
        text, finish, times = AnswerText(self.tokenizer, request.prompt), None, []
        try:
            while finish is None:
                for _, token, finish, *_ in self._engine.step():
                    usable(Completion([], "", finish or "stop"))
                    times.append(time.perf_counter())
                    piece = text.push(token)
                    turn.answer += piece
                    yield piece
        finally:
            self._engine.cancel(handle)
            turn.tokens = len(times)
            if len(times) > 1:
                turn.tokens_per_second = (len(times) - 1) / (times[-1] - times[0])
        rest = text.finish()
        turn.answer += rest
        yield rest

    def _request(self, turn: Turn) -> Request:
        if self.is_chat:
            prompt = encode_chat(self.tokenizer, [*self.messages, {"role": "user", "content": turn.question}])
        else:
            prompt = encode_prompt(self.tokenizer, turn.question, special=False)
        room = self._engine.length - len(prompt)
        if room < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, and {self._engine.length} are the most; clear it, or "
                "start with a greater --length"
            )
        sampling = dataclasses.replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, room))
        return Request(
            prompt,
            sampling,
            self.tokenizer.stop_ids,
            seed=self.seed,
            number=len(self.turns) - 1,
            answer=turn.attempt,
            adapter=self.adapter,
        )


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
