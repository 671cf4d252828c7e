"""How a form asks: what a round of it knows, and how its requests become completions or messages."""

import hashlib
import random
from collections.abc import Generator as Steps
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from llama_jax.instruct.config import AskingConfig, SelfInstructConfig
from llama_jax.instruct.generators.kept import KeptAnswers
from llama_jax.instruct.generators.requests import Answer, Request
from llama_jax.instruct.languages import Language
from llama_jax.instruct.pool import Candidate, Pool
from llama_jax.instruct.prompts import Prompts

Made = TypeVar("Made")

Round: TypeAlias = Steps[list[Request], list[Answer], list[Candidate]]
"""Gives requests, is sent their answers, as often as the form has steps; returns what was proposed."""


@dataclass(frozen=True)
class Asking:
    """What every round of a run knows."""

    config: SelfInstructConfig
    prompts: Prompts
    language: Language
    pool: Pool
    chats: bool
    """Ask with messages."""
    user_opening: str = ""
    """What opens a user's turn (magpie)."""

    def draw(self, round_number: int, place: int) -> random.Random:
        """The randomness of one request: of seed, round and place alone."""
        return random.Random(f"{self.config.seed} {round_number} {place}")

    def request_seed(self, round_number: int, place: int) -> int:
        """What a request tells the model's own randomness."""
        return numbered_seed(self.config.seed, round_number, place)

    def put(self, text: str, ending: str) -> str | tuple[dict[str, str], ...]:
        """A prompt as it is asked: to be continued; or said, with an ending that says how to go on."""
        return ({"role": "user", "content": f"{text}\n\n{ending}"},) if self.chats else text


def numbered_seed(*numbers: int) -> int:
    """A seed below 2^31 that depends on all the numbers."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def bound(config: AskingConfig, published: int) -> int:
    """Tokens of an answer at the most."""
    return published if config.max_new_tokens is None else min(published, config.max_new_tokens)


UNUSABLE: Mapping[str, str] = {"filtered": "withheld", "too_long": "prompt_too_long"}
"""What a candidate is dropped for whose answer ended so."""


def unusable(answers: Sequence[Answer]) -> list[Candidate]:
    """A candidate for each answer of which nothing can be read."""
    return [Candidate.malformed(answer.text, UNUSABLE[answer.finish]) for answer in answers if not answer.is_usable]


def played(round: Steps[list[Request], list[Answer], Made], answers: KeptAnswers) -> tuple[Made, dict[str, int]]:
    """What a round comes to, and how much it took: requests, and tokens of them and of the answers."""
    taken = {"requests": 0, "tokens_in": 0, "tokens_out": 0}
    requests = next(round)
    while True:
        found = answers.answers(requests)
        taken["requests"] += len(requests)
        taken["tokens_in"] += sum(answer.tokens_in for answer in found)
        taken["tokens_out"] += sum(answer.tokens_out for answer in found)
        try:
            requests = round.send(found)
        except StopIteration as done:
            return done.value, taken
