"""What can be told about the answers that a run keeps of its model."""

from dataclasses import dataclass

from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class SamplesConfig:
    """Answers to fixed prompts, written before the first step and at each evaluation, so that one can read how the
    model changes: `samples.jsonl` in the run directory. Greedy, so that only the model makes a difference."""

    prompts: tuple[str, ...] = ()
    """What a user says, each put into the template of the data. Empty: the first held-out examples' prompts."""
    held_out: int = 3
    """How many held-out prompts to take where `prompts` is empty; 0 with no prompts: no samples."""
    max_new_tokens: int = 64
    """Length of an answer, at the most, in tokens."""

    def __post_init__(self) -> None:
        for name, least in (("held_out", 0), ("max_new_tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"samples.{name}: {value} must be at least {least}")
