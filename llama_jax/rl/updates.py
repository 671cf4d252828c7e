"""What one rollout is worth: its log-probabilities by the forward pass of training, and the updates of the policy that
are made of it. Knows no reward."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from llama_jax.core import sharding
from llama_jax.core.arrays import Array, Float, Int, PyTree
from llama_jax.core.batches import PolicyBatch, TokenBatch
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
    aggregation: Aggregation = rollout_token_mean
    """What each token counts."""
    learns_truncated: bool = True
    """Learn from completions that ended only because they were long enough."""
    most_divergence: float = np.inf
    """Nats: where the mean squared log-ratio of an update, by two, exceeds this, no further update is made."""


class Experience(NamedTuple):
    """What is known of each token of a rollout, `[N, C]`."""

    old_logprobs: Float[np.ndarray, "N C"]
    reference_logprobs: Float[np.ndarray, "N C"]
    importance_weights: Float[np.ndarray, "N C"]
    advantages: Float[np.ndarray, "N C"]


class Updates:
    """Makes the updates of a policy, on the mesh of its program.

    All have the same number of rows, that of the training config, however well completions pack: nothing is compiled
    for what happens to be sampled.

    Args:
        program: With an objective over `PolicyBatch`.
        temperature: That the completions are sampled with.
        longest: Tokens of the longest prompt, and of the longest completion.
        completions: Of a rollout.

    Raises:
        UserError: the rows of a batch may not hold the completions of an update, or these are not equally many.
    """

    def __init__(
        self, program: Program, plan: Plan, *, temperature: float, longest: tuple[int, int], completions: int, seed: int
    ) -> None:
        self._program, self._plan, self._seed = program, plan, seed
        self._temperature, self._longest = temperature, longest[1]
        if completions % plan.minibatches:
            raise UserError(f"minibatches: {completions} completions are not divisible by {plan.minibatches}")
        self._each = completions // plan.minibatches
        a_row = program.sequence_length // (sum(longest) - 1)
        rows = program.config.batch_size
        if a_row * rows < self._each:
            needed = -(-self._each // max(a_row, 1))
            raise UserError(
                f"training.batch_size: {rows} rows of {program.sequence_length} tokens may not hold the {self._each} "
                f"completions of an update, of up to {sum(longest) - 1} tokens with their prompts; {needed} rows do"
                if a_row
                else f"row_length: {program.sequence_length} is less than the {sum(longest) - 1} tokens that a prompt "
                "may have with its completion"
            )

    def logprobs(self, params: PyTree, rollouts: Rollouts) -> Float[np.ndarray, "N C"]:
        """log p of each token, in nats, 0 behind the ends; by as many completions at a time as an update has.

        Args:
            params: Of the policy, or of the reference.
        """
        found = np.zeros(rollouts.logprobs.shape, np.float32)
        for start in range(0, len(found), self._each):
            members = np.arange(start, min(start + self._each, len(found)))
            rows = self._rows(rollouts, members)
            batch = place_whole_batch(self._program.mesh, TokenBatch, rows.fields, len(rows))
            model = self._program.model
            found[members] = rows.gathered(np.asarray(_row_logprobs(model, self._temperature, params, batch)))
        return found

    def __call__(
        self, state: TrainState, frozen: PyTree, rollouts: Rollouts, experience: Experience, number: int
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """The state after the updates, and the metrics of each.

        Args:
            number: Of the rollout in the run: the completions are dealt by it.
        """
        metrics: list[dict[str, float]] = []
        for batch in self._batches(rollouts, experience, number):
            state, found = self._program.step(state, frozen, batch)
            metrics.append({name: float(value) for name, value in found.items()})
            if metrics[-1]["approximate_kl"] > self._plan.most_divergence:
                break
        return state, metrics

    def _batches(self, rollouts: Rollouts, experience: Experience, number: int) -> Iterator[PolicyBatch]:
        learned = rollouts.mask if self._plan.learns_truncated else rollouts.mask & rollouts.ended[:, None]
        told = Rollout(float(learned.sum()) / self._plan.minibatches, self._longest)
        for epoch in range(self._plan.epochs):
            order = np.random.RandomState([self._seed % 2**32, number, epoch]).permutation(len(learned))
            for members in np.split(order, self._plan.minibatches):
                rows, shares = self._rows(rollouts, members), self._plan.aggregation(learned[members], told)
                own: dict[str, Any] = {name: rows.laid(each[members]) for name, each in experience._asdict().items()}
                own["loss_weights"] = rows.laid(learned[members].astype(np.float32))
                own["shares"] = rows.laid(shares.shares)
                own["share_normalizer"] = np.asarray(shares.normalizer, np.float32)
                yield place_whole_batch(self._program.mesh, PolicyBatch, rows.fields | own, len(rows))

    def _rows(self, rollouts: Rollouts, members: Int[np.ndarray, "n"]) -> Rows:
        prompts, completions = ([each[n] for n in members] for each in (rollouts.prompts, rollouts.completions))
        size = self._program.config.batch_size
        return laid_rows(prompts, completions, self._longest, self._program.sequence_length, multiple=size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row_logprobs(model: LanguageModel, temperature: float, params: PyTree, batch: TokenBatch) -> Float[Array, "B T"]:
    """Whole on every process."""
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    unembed, wanted = tempered(model, temperature), batch.loss_weights > 0
    logprobs = completion_logprobs(unembed, model.head(params), hidden, batch.targets, wanted)
    return sharding.constrain(logprobs, (None, None))
