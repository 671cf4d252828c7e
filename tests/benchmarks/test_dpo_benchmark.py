"""What both sides of `benchmark dpo` are given."""

import numpy as np
import pytest

from llama_jax.benchmarks.config import DpoBenchmarkConfig
from llama_jax.benchmarks.dpo.own_side import pairs_of
from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.batches import completion_batch
from llama_jax.core.errors import UserError
from llama_jax.core.settings.command_line import parse
from llama_jax.data.preferences.examples import CollectedCompletions, with_shared_prompts
from llama_jax.data.preferences.rows import completion_row

PAIRS = [([7, 31, 5], [44, 18, 2], [44, 2]), ([52], [12, 2], [27, 85, 2]), ([9, 9], [58, 2], [58, 95, 2])]


def parsed(*arguments: str) -> DpoBenchmarkConfig:
    given = ("--model", "m", *arguments)
    return parse(COMMANDS["benchmark dpo"], given, command="benchmark dpo", commands=COMMANDS, presets=PRESETS)


@pytest.mark.parametrize("share_prompts", [False, True])
def test_pairs_come_out_of_rows_as_they_went_in(share_prompts):
    collected = CollectedCompletions(2)
    for prompt, *answers in PAIRS:
        collected.add([(prompt + ids, [False] * len(prompt) + [True] * len(ids)) for ids in answers], 0.0)
    examples = collected.examples()
    if share_prompts:
        examples = with_shared_prompts(examples)
    kind = completion_batch(2, 2, share_prompts)
    rows = [completion_row(kind, examples, numbers, 32) for numbers in ([0, 1], [2], [])]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert list(pairs_of(batch)) == [dict(zip(names, pair, strict=True)) for pair in PAIRS]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--pairs", "0"), "--pairs 0: must be at least 1"),
        (("--method", "full"), "method: full, but --against trl is for lora"),
        (("--loss", "hinge"), "loss: hinge, but --against trl is for sigmoid"),
        (("--model_dtype", "bfloat16"), "compute.dtype float32, model_dtype bfloat16: --against trl is in float32"),
        (("--data.overlong", "keep_end"), "data.overlong: keep_end, but --against trl needs one prompt of both"),
        (("--against", "peft"), "--against: got"),
    ],
)
def test_what_trl_cannot_do_alike_is_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        parsed(*arguments)
