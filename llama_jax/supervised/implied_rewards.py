"""Supervision by preferences without a reward model: what `dpo` and `kto` give to `fine_tune`."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import CompletionBatch
from llama_jax.core.run_directory import RunDirectory
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.kto import kto
from llama_jax.objectives.objective import Objective
from llama_jax.objectives.preference import PairLoss, preference
from llama_jax.runs.completion_sums import completion_sums
from llama_jax.runs.held_out_preferences import HeldOutPreferences, Judge, judge_labels, judge_pairs
from llama_jax.supervised.fine_tuning import Supervision
from llama_jax.supervised.preference_config import DpoConfig, KtoConfig
from llama_jax.supervised.preferences import batches_of, open_preferences
from llama_jax.supervised.reference import set_reference


def pairs(config: DpoConfig, loss: PairLoss) -> Supervision:
    """Pairs of answers, by a loss on how much likelier each has become than under the model that a run begins with."""
    beta, per_token = config.beta, config.is_per_token
    kind = batches_of(config)
    return _supervision(
        config,
        kind,
        lambda model: preference(model, loss, kind, beta=beta, per_token=per_token, sft_weight=config.sft_weight),
        functools.partial(judge_pairs, loss, beta, per_token),
        has_reference=config.has_reference,
    )


def labels(config: KtoConfig) -> Supervision:
    """Answers that are good or bad, by KTO."""
    desirable, undesirable = config.desirable_weight, config.undesirable_weight
    kind = batches_of(config)
    return _supervision(
        config,
        kind,
        lambda model: kto(model, kind, beta=config.beta, desirable_weight=desirable, undesirable_weight=undesirable),
        functools.partial(judge_labels, config.beta, (desirable, undesirable)),
    )


def _supervision(
    config: DpoConfig | KtoConfig,
    batches: type[CompletionBatch],
    objective: Callable[[LanguageModel], Objective],
    judge: Judge,
    *,
    has_reference: bool = True,
) -> Supervision:
    def evaluation(model: LanguageModel, data: Any, rows: int, run: RunDirectory) -> HeldOutPreferences:
        def logprobs(params: PyTree) -> np.ndarray:
            return completion_sums(model, batches, params, data.validation_batches(rows))

        return HeldOutPreferences(logprobs, data.validation, judge, run, has_reference=has_reference)

    return Supervision(
        objective=objective,
        open_data=functools.partial(open_preferences, config),
        evaluation=evaluation,
        set_reference=functools.partial(set_reference, batches) if has_reference else None,
        samples=config.samples,
    )
