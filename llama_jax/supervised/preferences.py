"""Supervision by preferences: what `reward` gives to `fine_tune`, and which parameters train."""

import functools
from collections.abc import Callable, Mapping, Sequence

from llama_jax.checkpoints.reward_normalization import measured_normalization
from llama_jax.core.batches import CompletionBatch, completion_batch
from llama_jax.data.preferences.loader import MEMBERS, PreferenceLoader, longest_sequence
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.objectives.reward import Losses, bradley_terry, per_token, regression, scored
from llama_jax.runs.held_out_scores import HeldOutScores
from llama_jax.runs.methods import Method, all_parameters, low_rank_adapter, with_scalar_head
from llama_jax.supervised.fine_tuning import Supervision
from llama_jax.supervised.preference_config import PreferenceConfig, RewardConfig


def preference_method(config: PreferenceConfig) -> Method:
    """Which parameters of a language model train."""
    if config.method == "full":
        return all_parameters(config.training.trainable)
    return low_rank_adapter(config.lora, config.model_dtype, config.training.peak_learning_rate)


def scores(config: RewardConfig) -> tuple[Method, Supervision]:
    """A scalar head on the end of a model, trained to score answers, and its scores of examples that are held out."""
    losses: Mapping[str, Losses] = {
        "bradley_terry": bradley_terry(config.centering),
        "per_token": per_token,
        "regression": regression,
    }
    batch, loss = batches_of(config), losses[config.loss]
    supervision = Supervision(
        objective=lambda model: scored(model, batch, loss),
        open_data=functools.partial(open_preferences, config),
        evaluation=lambda model, data, rows, run: HeldOutScores(
            model, loss, batch, lambda: data.validation_batches(rows), run
        ),
        measured_files=measured_normalization,
        use="evaluate --task preference --model {run}" + " --data PAIRS" * (config.kind == "scores"),
    )
    return with_scalar_head(preference_method(config)), supervision


def batches_of(config: PreferenceConfig) -> type[CompletionBatch]:
    """The class of the batches of a run."""
    longest = longest_sequence(config.data, config.kind)
    return completion_batch(config.data.pairs_per_row, MEMBERS[config.kind], config.shares_prompts, longest)


def open_preferences(
    config: PreferenceConfig,
    tokenizer: Tokenizer,
    rows_of: Callable[[int], Sequence[int]] | None,
    say: Callable[[str], None],
) -> PreferenceLoader:
    """All examples as training takes them."""
    batch_size_at = config.training.batch_size_at
    return PreferenceLoader(
        config.data,
        tokenizer,
        config.kind,
        config.seed,
        batch_size_at=batch_size_at,
        rows_of=rows_of,
        say=say,
        share_prompts=config.shares_prompts,
    )
