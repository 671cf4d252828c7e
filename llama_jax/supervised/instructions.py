"""Supervision by instructions and answers: what `sft` and `lora` give to `fine_tune`."""

import functools
from collections.abc import Callable, Sequence

from llama_jax.data.instructions.loader import ExampleLoader
from llama_jax.data.preferences.chosen import InstructionOrPairData
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.objectives.next_token import next_token
from llama_jax.runs.held_out import HeldOut
from llama_jax.supervised.config import InstructionConfig
from llama_jax.supervised.fine_tuning import Supervision


def instructions(config: InstructionConfig) -> Supervision:
    """The tokens of the answers, by the next-token loss, and the same loss on examples that are held out."""
    return Supervision(
        objective=functools.partial(next_token, z_loss=config.training.z_loss),
        open_data=functools.partial(open_instructions, config),
        evaluation=lambda model, data, rows, run: HeldOut(model, lambda: data.validation_batches(rows), run),
        samples=config.samples,
    )


def open_instructions(
    config: InstructionConfig,
    tokenizer: Tokenizer,
    rows_of: Callable[[int], Sequence[int]] | None,
    say: Callable[[str], None],
) -> ExampleLoader:
    """All examples as training takes them."""
    batch_size_at = config.training.batch_size_at
    return ExampleLoader(
        config.data,
        tokenizer,
        config.seed,
        batch_size_at=batch_size_at,
        rows_of=rows_of,
        say=say,
        kind=InstructionOrPairData,
    )
