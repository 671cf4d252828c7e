"""Settings of decoding, and of the commands that continue prompts and talk."""

import math
from dataclasses import dataclass

from llama_jax.checkpoints.config import UseConfig
from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    max_new_tokens: int = 128
    """Tokens to generate at the most; generation also stops at the end-of-sequence token."""
    temperature: float = 0.8
    """Divisor of the logits before sampling; 0 takes the most likely token."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together have this probability; 1: all."""
    min_p: float = 0.0
    """Sample among the tokens at least this many times as likely as the most likely one; 0: all."""
    repetition_penalty: float = 1.0
    """Divisor of the logits above 0, and factor on those below, of tokens that are in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that are in the answer."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time it is in the answer."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: {self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature: {self.temperature} must be 0 or a finite number above it")
        if self.top_k < 0:
            raise UserError(f"top_k: {self.top_k} must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} must lie above 0 and be at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p: {self.min_p} must lie between 0 and 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty: {self.repetition_penalty} must be above 0; 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise UserError(f"{name}: {value} must be a finite number; 0 changes nothing")


@dataclass(frozen=True)
class GenerateConfig(SamplingConfig, UseConfig):
    """Continue a prompt. Streams to the terminal, unless JSON is asked for. With several adapters each prompt is
    continued by each of them, side by side."""

    prompt: str = "The "
    """Text to continue; an empty one starts from the beginning-of-sequence token alone."""
    prompts: str | None = None
    """File with a prompt a line, continued together instead of `prompt`."""
    chat: bool = False
    """The prompt is what a user says: put the model's chat template around it, and print the answer alone."""
    special_tokens: bool = True
    """Read control tokens written in the prompt, such as <|im_start|>, as such; false: as ordinary text, as they always
    are with `chat`."""
    seed: int = 0
    """Seed of the random choices."""


@dataclass(frozen=True)
class ChatConfig(SamplingConfig, UseConfig):
    """Talk with a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends, /help lists what else there is. Where the
    input is not a terminal, each line of it is a message."""

    max_new_tokens: int = 1024
    """Tokens of an answer at the most, or as many as still fit; an answer also stops at the end-of-sequence token."""
    system: str | None = None
    """What the model is told before the conversation; None: what its chat template says by itself."""
    length: int | None = None
    """Tokens that a conversation may have; None: the model's context, but 4096 at the most."""
    markdown: bool = True
    """Lay out Markdown in answers; false: show it as it is written, as always where the output is not a terminal."""
    seed: int = 0
    """Seed of the random choices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None and self.length < 2:
            raise UserError(f"length: {self.length} must be at least 2, or null")
