"""The updates that are made of one rollout, of a policy or of a critic, and what these say of its tokens. Knows no
reward."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Bool, Float, Int, PyTree
from llama_jax.core.batches import Batch, TokenBatch
from llama_jax.core.errors import UserError
from llama_jax.core.placing import place_whole_batch
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.completion_logprobs import completion_logprobs
from llama_jax.objectives.policy import tempered
from llama_jax.rl.aggregation import Aggregation, Rollout, rollout_token_mean
from llama_jax.rl.rollouts import Rollouts
from llama_jax.rl.rows import Rows, laid_rows
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState


class Plan(NamedTuple):
    """How often a rollout is gone through, and in how many parts."""

    epochs: int = 1
    """Times that each completion is learned from."""
    minibatches: int = 1
    """Updates of an epoch; the completions are dealt to them anew in each."""
    aggregation: Aggregation | None = rollout_token_mean
    """What each token counts in the loss of a policy; None: the loss has no such shares."""
    most_divergence: float = np.inf
    """Nats: where the mean squared log-ratio of an update, by two, exceeds this, no further update is made."""


class Experience(NamedTuple):
    """What a policy learns from, of each token of a rollout, `[N, C]`; fields of `PolicyBatch`."""

    old_logprobs: Float[np.ndarray, "N C"]
    reference_logprobs: Float[np.ndarray, "N C"]
    importance_weights: Float[np.ndarray, "N C"]
    advantages: Float[np.ndarray, "N C"]


class Valued(NamedTuple):
    """What a critic learns from; fields of `ValueBatch`."""

    old_values: Float[np.ndarray, "N C"]
    returns: Float[np.ndarray, "N C"]


def no_fields(update: int) -> Mapping[str, np.ndarray]:
    """Nothing beside what is known of a rollout, for an update of the run."""
    del update
    return {}


class Updates:
    """Makes the updates of a model, on the mesh of its program.

    All have the same number of rows, that of the training config, however well completions pack: nothing is compiled
    for what happens to be sampled. Models with the same seed and numbers of parts are dealt the same completions.

    Args:
        program: With an objective over `PolicyBatch`, or over `ValueBatch`.
        longest: Tokens of the longest prompt, and of the longest completion.
        completions: Of a rollout.
        beside: Other fields of each batch, by the number of the update in the run.

    Raises:
        UserError: see `check_rows`.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        *,
        longest: tuple[int, int],
        completions: int,
        seed: int,
        beside: Callable[[int], Mapping[str, np.ndarray]] = no_fields,
    ) -> None:
        self._program, self._plan, self._seed, self._beside = program, plan, seed, beside
        self._longest = longest[1]
        check_rows(program.config.batch_size, program.sequence_length, longest, completions, plan.minibatches)

    def __call__(
        self,
        state: TrainState,
        frozen: PyTree,
        rollouts: Rollouts,
        learned: Bool[np.ndarray, "N C"],
        known: Experience | Valued,
        number: int,
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """The state after the updates, and the metrics of each.

        Args:
            learned: The tokens that are learned from.
            number: Of the rollout in the run: the completions are dealt by it.
        """
        metrics: list[dict[str, float]] = []
        for batch in self._batches(rollouts, learned, known, number):
            state, found = self._program.step(state, frozen, batch)
            metrics.append({name: float(value) for name, value in jax.device_get(found).items()})
            if metrics[-1].get("approximate_kl", 0.0) > self._plan.most_divergence:
                break
        return state, metrics

    def _batches(
        self, rollouts: Rollouts, learned: Bool[np.ndarray, "N C"], known: Experience | Valued, number: int
    ) -> Iterator[Batch]:
        plan, program = self._plan, self._program
        told = Rollout(float(learned.sum()) / plan.minibatches, self._longest)
        for epoch in range(plan.epochs):
            order = np.random.RandomState([self._seed % 2**32, number, epoch]).permutation(len(learned))
            for part, members in enumerate(np.split(order, plan.minibatches)):
                rows = self._rows(rollouts, members)
                own: dict[str, Any] = {name: rows.laid(each[members]) for name, each in known._asdict().items()}
                own["loss_weights"] = rows.laid(learned[members].astype(np.float32))
                if plan.aggregation is not None:
                    shares = plan.aggregation(learned[members], told)
                    own["shares"] = rows.laid(shares.shares)
                    own["share_normalizer"] = np.asarray(shares.normalizer, np.float32)
                own |= self._beside((number * plan.epochs + epoch) * plan.minibatches + part)
                yield place_whole_batch(program.mesh, program.batch, rows.fields | own, len(rows))

    def _rows(self, rollouts: Rollouts, members: Int[np.ndarray, "n"]) -> Rows:
        prompts, completions = ([each[n] for n in members] for each in (rollouts.prompts, rollouts.completions))
        size = self._program.config.batch_size
        return laid_rows(prompts, completions, self._longest, self._program.sequence_length, multiple=size)


def check_rows(rows: int, row_length: int, longest: tuple[int, int], completions: int, minibatches: int) -> None:
    """See to it that a batch of so many rows holds the completions of an update, however well they pack.

    Args:
        longest: Tokens of the longest prompt, and of the longest completion.
        completions: Of a rollout.

    Raises:
        UserError: it may not, or the completions cannot be dealt evenly.
    """
    if completions % minibatches:
        raise UserError(f"minibatches: {completions} completions are not divisible by {minibatches}")
    each, tokens = completions // minibatches, sum(longest) - 1
    a_row = row_length // tokens
    if not a_row:
        raise UserError(
            f"row_length: {row_length} is less than the {tokens} tokens that a prompt may have with its completion"
        )
    if a_row * rows < each:
        raise UserError(
            f"training.batch_size: {rows} rows of {row_length} tokens may not hold the {each} completions of an "
            f"update, of up to {tokens} tokens with their prompts; {-(-each // a_row)} rows do"
        )


def logprobs_by(program: Program, temperature: float, params: PyTree, rollouts: Rollouts) -> Float[np.ndarray, "N C"]:
    """log p of each token, in nats, 0 behind the ends, by a policy or a reference.

    Args:
        program: Of a model that the parameters fit, and whose rows it reads.
    """
    found = functools.partial(row_logprobs, program.model, temperature, params)
    return read(found, rollouts, program.mesh, program.config.batch_size, program.sequence_length)


def values_by(program: Program, params: PyTree, rollouts: Rollouts) -> Float[np.ndarray, "N C"]:
    """What a critic says before each token is chosen, 0 behind the ends."""
    found = functools.partial(row_scores, program.model, params)
    return read(found, rollouts, program.mesh, program.config.batch_size, program.sequence_length)


def read(
    of_rows: Callable[[TokenBatch], Float[Array, "B T"]],
    rollouts: Rollouts,
    mesh: Mesh,
    size: int,
    row_length: int,
    *,
    reads_end: bool = False,
) -> Float[np.ndarray, "N _"]:
    """What a model says where each token is predicted, `[N, C]`, read in packed rows of one shape, so many at a time.

    Args:
        reads_end: Also what it says behind the last token: `[N, C + 1]`.
    """
    longest = rollouts.logprobs.shape[1] + reads_end
    ends = np.ones(len(rollouts.prompts), np.bool_) if reads_end else None
    rows = laid_rows(rollouts.prompts, rollouts.completions, longest, row_length, multiple=size, reads_end=ends)
    found = []
    for start in range(0, len(rows), size):
        part = {name: field[start : start + size] for name, field in rows.fields.items()}
        found.append(np.asarray(of_rows(place_whole_batch(mesh, TokenBatch, part, size))))
    return rows.gathered(np.concatenate(found))


@functools.partial(jax.jit, static_argnums=(0, 1))
def row_logprobs(model: LanguageModel, temperature: float, params: PyTree, batch: TokenBatch) -> Float[Array, "B T"]:
    """Whole on every process."""
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    unembed, wanted = tempered(model, temperature), batch.loss_weights > 0
    logprobs = completion_logprobs(unembed, model.head(params), hidden, batch.targets, wanted)
    return sharding.constrain(logprobs, (None, None))


@functools.partial(jax.jit, static_argnums=0)
def row_scores(model: LanguageModel, params: PyTree, batch: TokenBatch) -> Float[Array, "B T"]:
    """What a model with a scalar head says of each position; whole on every process."""
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    return sharding.constrain(model.scores(params, hidden), (None, None))
