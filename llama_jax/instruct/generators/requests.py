"""What is asked and what is answered, and the one seam between those who ask and whoever answers."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

Messages: TypeAlias = tuple[Mapping[str, str], ...]
"""Objects with `role` and `content`."""


@dataclass(frozen=True)
class Request:
    """A question to a model."""

    prompt: str | Messages
    """A text to continue, control tokens in it read as such; or what was said, to be answered."""
    max_new_tokens: int
    temperature: float = 1.0
    """0: the most likely answer."""
    top_p: float = 1.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    seed: int = 0

    def key(self, identity: str) -> str:
        """SHA-256 of the request and of who is asked."""
        return hashlib.sha256(json.dumps([identity, asdict(self)], sort_keys=True).encode()).hexdigest()

    @property
    def length(self) -> int:
        """Bytes of what is asked."""
        texts = [self.prompt] if isinstance(self.prompt, str) else [message["content"] for message in self.prompt]
        return sum(len(text.encode()) for text in texts)


Finish: TypeAlias = Literal["stop", "length", "filtered", "too_long"]


class Answer(NamedTuple):
    """What was answered."""

    text: str
    finish: Finish
    """`length`: it reached its bound on tokens. `filtered`: the endpoint withheld it. `too_long`: the model's context
    has no room for an answer."""
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def is_usable(self) -> bool:
        """Whether there is anything to read."""
        return self.finish in ("stop", "length")

    @property
    def was_cut(self) -> bool:
        """Whether its end is missing."""
        return self.finish == "length"


Lost: TypeAlias = Callable[[int, int], None]
"""Told of the tokens, at the most, of a request that was sent and whose answer never came."""


@runtime_checkable
class Generator(Protocol):
    """Whoever answers."""

    identity: str
    """Who that is: answers are kept under it."""
    chats: bool
    """Whether it is better asked with messages."""

    def answers(
        self, requests: Sequence[Request], stopping: Callable[[], bool], lost: Lost
    ) -> Iterator[tuple[int, Answer]]:
        """(number of the request, its answer), as they come.

        Args:
            stopping: once true nothing new is begun, and this ends after what is under way.
            lost: told of what may cost and gives no answer.

        Raises:
            UserError: the requests cannot be answered, such as for a wrong key.
            CannotGoOnError: whoever answers is out of reach, or the budget is spent; what was under way comes first.
        """
        ...
