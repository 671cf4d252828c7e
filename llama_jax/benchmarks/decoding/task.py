"""What a side of `benchmark decode` is asked to write, and what it answers. Part of every side, so it imports nothing
heavy."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SAMPLE_TOKENS = 16
"""Tokens that each side writes after the sample."""

_IDS = range(32, 256)
"""Token ids that every vocabulary has and that control nothing."""


@dataclass(frozen=True)
class Task:
    """What is the same on all sides. Greedy, to the last token asked for, whatever the tokens are."""

    weights: str
    """The model, in the side's own format."""
    sample: Sequence[int]
    """A prompt after which all sides must write the same."""
    prompt_tokens: int
    new_tokens: int
    rows: int
    """Streams at a time, at the most."""

    def prompts(self, seed: int, streams: int) -> list[list[int]]:
        """Random prompts: no side may have read the beginning of one before."""
        drawn = random.Random(seed)
        return [[drawn.choice(_IDS) for _ in range(self.prompt_tokens)] for _ in range(streams)]


Arrivals = list[list[float]]
"""For each stream the seconds at which its tokens came, counted from when all prompts were given."""


def rates(arrivals: Arrivals, prompt_tokens: int) -> dict[str, float]:
    """Tokens per second: `prefill`, of the prompts, until every stream has its first token; `decode`, of new tokens
    from then on; `all`, of new tokens from the beginning."""
    begun, end = max(times[0] for times in arrivals), max(times[-1] for times in arrivals)
    later = sum(time > begun for times in arrivals for time in times)
    return {
        "prefill": len(arrivals) * prompt_tokens / begun,
        "decode": later / (end - begun),
        "all": sum(map(len, arrivals)) / end,
    }


def facts(what: str, sample_answer: Sequence[int], **more: Any) -> dict[str, Any]:
    """What a side says of itself; `sample_answer`: the tokens it writes after the sample."""
    return {"what": what, "sample_answer": list(sample_answer), **more}
