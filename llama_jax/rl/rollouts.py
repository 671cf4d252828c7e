"""Completions sampled by the engine from live weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Bool, Float, Int, PyTree
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.placing import indivisible_rows
from llama_jax.core.sharding import size_of
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, NewToken, Request
from llama_jax.inference.layout import decoding_params
from llama_jax.model import paths
from llama_jax.model.llama import LanguageModel
from llama_jax.rl.config import RolloutConfig, check_sampling

_READERS = 16
"""Prompts that are read side by side, at the most: all of a rollout are there at once."""


@dataclass(frozen=True)
class Rollouts:
    """What was sampled after some prompts: N completions of at most C tokens, those of a prompt one after the other."""

    prompts: list[list[int]]
    """Of each completion."""
    completions: list[list[int]]
    """Token ids, with the one that ended it."""
    logprobs: Float[np.ndarray, "N C"]
    """log p of each token when it was drawn, in nats, by the sampler."""
    ended: Bool[np.ndarray, "N"]
    """Whether an end token came; else as many tokens did as there may be."""

    @property
    def lengths(self) -> Int[np.ndarray, "N"]:
        """Tokens of each completion."""
        return np.array([len(each) for each in self.completions], np.int64)

    @property
    def mask(self) -> Bool[np.ndarray, "N C"]:
        """Where there is a token."""
        return np.arange(self.logprobs.shape[1])[None] < self.lengths[:, None]

    def with_others(self, places: Bool[np.ndarray, "N"], others: "Rollouts") -> "Rollouts":
        """With others at some places, in their order."""
        prompts, completions, logprobs, ended = (
            [*self.prompts],
            [*self.completions],
            self.logprobs.copy(),
            self.ended.copy(),
        )
        for number, place in enumerate(np.flatnonzero(places).tolist()):
            prompts[place], completions[place] = others.prompts[number], others.completions[number]
        logprobs[places], ended[places] = others.logprobs, others.ended
        return Rollouts(prompts, completions, logprobs, ended)


def ending_before(rollouts: Rollouts, padding: int) -> Rollouts:
    """The same texts up to their last id that is not padding, which is where transformers reads a score; of one that
    has no other, its first is left."""
    prompts, completions = [], []
    for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True):
        ids = [*prompt, *completion]
        end = 1 + max((place for place, each in enumerate(ids) if each != padding), default=0)
        prompts.append(prompt[:end])
        completions.append(ids[len(prompt) : end])
    return replace(rollouts, prompts=prompts, completions=completions)


def readers_of(slots: int) -> int:
    """Prompts that each part of the mesh in use reads side by side."""
    return max(1, min(_READERS, slots) // size_of("batch"))


def rollout_slots(config: RolloutConfig, completions: int) -> int:
    """Completions that are written at a time on the mesh in use, of so many in all: no more than are needed, in parts
    that are equal.

    Raises:
        UserError: the mesh does not divide those of the config.
    """
    parts = size_of("batch")
    if problem := indivisible_rows(config.slots, parts):
        raise UserError(f"rollout.slots: {problem}")
    return min(config.slots, -(-completions // parts) * parts)


class Sampler:
    """Samples from a policy whose weights change. It keeps them in the decoding layout beside those of training: of a
    policy that is an adapter over a frozen base, the base is laid out once, and the adapter whenever it has changed.

    Args:
        params: The policy, scanned layout, on the mesh in use.
        length: Tokens of prompt and completion at the most.
        slots: Completions written at a time; the mesh divides them.
        stop_ids: Tokens that end a completion.
        row_counts: See `Engine`.

    Raises:
        UserError: see `check_sampling`.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: PyTree,
        sampling: SamplingConfig,
        *,
        slots: int,
        length: int,
        stop_ids: tuple[int, ...],
        row_counts: Sequence[int] | None = None,
    ) -> None:
        check_sampling(sampling)
        self._model, self._stop_ids = model, stop_ids
        # All else changes nothing, and of a rollout the temperature must not be 0.
        self._sampling = SamplingConfig(sampling.max_new_tokens, sampling.temperature)
        self._layers, self._base = decoding_params(model, params), _base_of(params)
        readers = readers_of(slots)
        self._side_by_side = readers * size_of("batch")
        self._engine = Engine(model, self._layers, slots=slots, length=length, row_counts=row_counts, readers=readers)

    @property
    def compilations(self) -> int:
        """Programs compiled so far to sample."""
        return self._engine.compilations

    def update(self, params: PyTree) -> None:
        """Go on with these weights, of the same shapes."""
        base = _base_of(params)
        if base and base.keys() == self._base.keys() and all(base[path] is self._base[path] for path in base):
            adapter, _ = tree.split(params, paths.is_adapter)
            self._layers = {**self._layers, **decoding_params(self._model, adapter)}
        else:
            self._layers, self._base = decoding_params(self._model, params), base
        self._engine.replace_weights(jax.block_until_ready(self._layers))

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, *, seed: int, first: int, greedy: bool = False
    ) -> Rollouts:
        """`count` completions of each prompt. What is drawn follows from the seed, the number of the prompt, the number
        of the completion and the index of the token alone.

        Args:
            first: Number of the first prompt, counted over all of the run.
            greedy: Take the most likely tokens instead; nothing is to be learned from these.

        Raises:
            UserError: a prompt can never be answered.
            CannotGoOnError: the model's logits are not numbers.
        """
        sampling = replace(self._sampling, temperature=0.0) if greedy else self._sampling
        requests = [
            Request(list(prompt), sampling, self._stop_ids, seed, first + number, answer, top_logprobs=0)
            for number, prompt in enumerate(prompts)
            for answer in range(count)
        ]
        answers = self._answered(requests, count)
        if any(token.finish == "error" for answer in answers for token in answer[-1:]):
            raise CannotGoOnError("rollout: the model's logits are not numbers; training has broken its weights")
        logprobs = np.zeros((len(requests), self._sampling.max_new_tokens), np.float32)
        for row, answer in zip(logprobs, answers, strict=True):
            row[: len(answer)] = np.array([token.sampled_logprob for token in answer], np.float32)  # None: NaN
        return Rollouts(
            [list(request.prompt) for request in requests],
            [[token.id for token in answer] for answer in answers],
            logprobs,
            np.array([answer[-1].finish == "stop" for answer in answers], np.bool_),
        )

    def _answered(self, requests: list[Request], count: int) -> list[list[NewToken]]:
        """Prompts that are read side by side are asked for their first completions, then for the others, for which
        they need not be read again."""

        def turn(number: int) -> tuple[int, int]:
            prompt, answer = divmod(number, count)
            return prompt // self._side_by_side, answer

        order = sorted(range(len(requests)), key=turn)
        answers: list[list[NewToken]] = [[] for _ in requests]
        for number, answer in zip(order, self._engine.run([requests[number] for number in order]), strict=True):
            answers[number] = answer
        return answers


def _base_of(params: PyTree) -> dict[str, Array]:
    """The arrays below an adapter, by path; of parameters without one, none: they would be kept alive for nothing."""
    leaves = tree.flatten(params)
    base = {path: leaf for path, leaf in leaves.items() if not paths.is_adapter(path)}
    return base if len(base) < len(leaves) else {}
