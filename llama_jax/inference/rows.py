"""What an engine knows of its rows without asking devices: whose they are, and which tokens their caches hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_jax.inference.requests import Request

WORTH_KEEPING = 16
"""Tokens that a prompt must share with what a slot holds for them not to be read again."""


@dataclass(eq=False)
class Job:
    """A request that is being answered, or waits."""

    handle: int
    request: Request
    adapter: int
    read: int = 0
    """Tokens of the prompt that its slot has read."""
    asked: int = 0
    """Tokens of the answer that devices were asked for."""

    @property
    def prompt(self) -> Sequence[int]:
        return self.request.prompt

    @property
    def unread(self) -> int:
        """Tokens of the prompt still to be read, but for the last one, which `decode` reads."""
        return len(self.prompt) - 1 - self.read

    @property
    def is_read(self) -> bool:
        """Whether `decode` can go on."""
        return self.unread == 0

    @property
    def is_asked(self) -> bool:
        """Whether devices were asked for the whole answer."""
        return self.asked == self.request.sampling.max_new_tokens


@dataclass(eq=False)
class Slot:
    """A row of the device's state, and what its caches are known to hold: all but the last of `tokens`."""

    number: int
    tokens: list[int] | None = None
    """None: nothing that may be used again."""
    adapter: int = 0
    job: Job | None = None
    used: int = 0
    """When its last request came, by a counter."""

    def shared(self, job: Job) -> int:
        """How many tokens of the prompt its caches hold."""
        if self.tokens is None or len(job.prompt) <= WORTH_KEEPING or self.adapter != job.adapter:
            return 0
        return _common(self.tokens, job.prompt)

    def promises(self, job: Job) -> int:
        """How many they will hold once the slot's own prompt is read."""
        return 0 if self.job is None or self.adapter != job.adapter else _common(self.job.prompt, job.prompt)

    def take(self, job: Job, read: int, now: int) -> None:
        """Serve a request, `read` tokens of whose prompt are in the caches."""
        self.job, self.adapter, self.used = job, job.adapter, now
        self.read(read)

    def read(self, count: int) -> None:
        """Note how many tokens of the prompt the caches hold now."""
        assert self.job is not None
        self.job.read, self.tokens = count, list(self.job.prompt[: count + 1])


def _common(tokens: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the common beginning of both without their last tokens; 0 where it is too short to be of use."""
    most = min(len(tokens), len(prompt)) - 1
    pairs = enumerate(zip(tokens[:most], prompt[:most], strict=True))
    length = next((index for index, (kept, wanted) in pairs if kept != wanted), most)
    return length if length >= WORTH_KEEPING else 0
