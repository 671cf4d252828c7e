"""Supervision by preferences without a reward model: what `dpo` and `kto` give to `fine_tune`."""

import functools
from collections.abc import Callable, Sequence

from llama_jax.core.batches import completion_batch
from llama_jax.data.preferences.loader import Kind, PreferenceLoader
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.objectives.kto import kto
from llama_jax.objectives.preference import PairLoss, preference
from llama_jax.runs.held_out_preferences import (
    HeldOutPreferences,
    judge_labels,
    judge_pairs,
    labels_right_by_length,
    pairs_right_by_length,
)
from llama_jax.runs.methods import Method, all_parameters, low_rank_adapter
from llama_jax.supervised.config import DpoConfig, KtoConfig, PreferenceConfig
from llama_jax.supervised.fine_tuning import Supervision
from llama_jax.supervised.reference import set_reference


def pairs(config: DpoConfig, loss: PairLoss) -> Supervision:
    """Pairs of completions, by a loss on what is gained on the reference model."""
    settings = {"beta": config.beta, "per_token": config.is_per_token}
    kind = completion_batch(config.data.pairs_per_row, 2)
    return Supervision(
        objective=lambda model: preference(model, loss, kind, sft_weight=config.sft_weight, **settings),
        open_data=functools.partial(_open_data, config, "pairs"),
        evaluation=lambda model, data, rows, run: HeldOutPreferences(
            model,
            lambda: data.validation_batches(rows),
            data.validation,
            functools.partial(judge_pairs, loss, config.beta, config.is_per_token),
            pairs_right_by_length(data.training, data.validation),
            run,
        ),
        set_reference=set_reference if config.has_reference else None,
        samples=config.samples,
    )


def labels(config: KtoConfig) -> Supervision:
    """Completions that are good or bad, by KTO."""
    weights = (config.desirable_weight, config.undesirable_weight)
    kind = completion_batch(config.data.pairs_per_row, 2)
    return Supervision(
        objective=lambda model: kto(
            model, kind, beta=config.beta, desirable_weight=weights[0], undesirable_weight=weights[1]
        ),
        open_data=functools.partial(_open_data, config, "labels"),
        evaluation=lambda model, data, rows, run: HeldOutPreferences(
            model,
            lambda: data.validation_batches(rows),
            data.validation,
            functools.partial(judge_labels, config.beta, weights),
            labels_right_by_length(data.training, data.validation),
            run,
        ),
        set_reference=set_reference,
        samples=config.samples,
    )


def method_of(config: PreferenceConfig) -> Method:
    """All parameters, or an adapter."""
    if config.method == "full":
        return all_parameters(config.training.trainable)
    return low_rank_adapter(config.lora, config.model_dtype, config.training.peak_learning_rate)


def _open_data(
    config: PreferenceConfig,
    kind: Kind,
    tokenizer: Tokenizer,
    rows_of: Callable[[int], Sequence[int]] | None,
    say: Callable[[str], None],
) -> PreferenceLoader:
    batch_size_at = config.training.batch_size_at
    return PreferenceLoader(
        config.data, tokenizer, kind, config.seed, batch_size_at=batch_size_at, rows_of=rows_of, say=say
    )
