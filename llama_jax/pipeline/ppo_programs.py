"""The programs that an iteration of PPO runs, lowered for devices that need not be here, and what lies in memory beside
each: all that the run keeps from one program to the next."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.errors import UserError
from llama_jax.core.placing import batch_shapes
from llama_jax.inference.engine import chunk_size, chunks_of
from llama_jax.inference.layout import in_layers
from llama_jax.model import paths
from llama_jax.model.config import AdapterConfig
from llama_jax.model.flops import flops_per_token
from llama_jax.model.llama import LanguageModel
from llama_jax.model.lora import without_adapter
from llama_jax.planning.decoding import decode_step, decoding_shapes, prefill_step, slots_of
from llama_jax.planning.planner import attention_of, training_step
from llama_jax.planning.report import Lowered
from llama_jax.rl.learners.critic import critic_method, critic_program
from llama_jax.rl.ppo_config import PpoConfig
from llama_jax.rl.rollouts import readers_of
from llama_jax.rl.updates import row_logprobs, row_scores
from llama_jax.training.program import Program


class Call(NamedTuple):
    """A program of an iteration."""

    phase: str
    """As metrics name it: layout, generation, scoring or update."""
    name: str
    runs: int
    """In an iteration; 0: before the first one alone."""
    lowered: Lowered


class _Run(NamedTuple):
    """A run of PPO that is not begun: shapes of all that it keeps in memory."""

    config: PpoConfig
    policy: Program
    critic: Program
    reward: PyTree
    """Parameters of the reward model, with what it shares; None: there is none."""
    layers: PyTree
    """The policy in the layout of decoding."""
    slots: Any
    kept: Mapping[str, PyTree]
    """What lies in memory from the first iteration to the last, no array twice."""

    def beside(self, *used: PyTree) -> int:
        """Bytes on a device of what is kept, but for these."""
        return sum(map(sharding.bytes_on_a_device, self.kept.values())) - sharding.bytes_on_a_device(used)


def longest_prompt(config: PpoConfig) -> int:
    """Tokens that a prompt may have: what is longer is left out, or does not fit into a row with its completion."""
    return min(config.data.max_prompt_tokens, config.row_length - config.rollout.max_new_tokens)


def ppo_calls(
    config: PpoConfig, policy: Program, of_reward: AdapterConfig | None, devices: Sequence[Any]
) -> list[Call]:
    """What an iteration runs whose prompts and completions are as long as they may be, in the order of the iteration.

    Args:
        policy: The program of its updates.
        of_reward: The adapter of a reward model over the base of the policy; None: it is a model of its own, of the
            same architecture, if the config names one.

    Raises:
        UserError: a row holds no prompt with its completion, or the mesh does not divide a model.
    """
    if longest_prompt(config) < 1:
        raise UserError(f"row_length: {config.row_length} leaves no room before {config.rollout.max_new_tokens} tokens")

    def of(adapter: AdapterConfig | None) -> Program:
        return critic_program(config, critic_method(config, adapter), policy.model.config, devices)

    begins_as_reward = config.reward_model is not None and config.critic.begins == "reward_model"
    critic = of(of_reward if begins_as_reward else None)
    scorer = None if of_reward is None or config.reward_model is None else of(of_reward)
    with jax.set_mesh(policy.mesh):
        run = _run(config, policy, critic, scorer)
        return [*_layouts(run), *_generation(run), *_scoring(run), *_updates(run)]


def _run(config: PpoConfig, policy: Program, critic: Program, scorer: Program | None) -> _Run:
    """
    Args:
        scorer: With the parameters of a reward model that is an adapter.
    """
    own, params = policy.state_shapes, _params(policy)
    kept = {"policy": own, "base": policy.frozen_shapes, "critic": critic.state_shapes}
    reward = None
    if scorer is not None:
        reward, kept["reward model"] = _params(scorer), scorer.state_shapes.trainable
    elif config.reward_model is not None:
        reward = kept["reward model"] = without_adapter(_params(critic))[0]
    if config.kl.coefficient and config.method == "full":
        kept["reference"] = own.trainable
    if config.average_decay:
        kept["average"] = own.trainable
    sampling = config.rollout
    rows, length = min(sampling.slots, sampling.completions), longest_prompt(config) + sampling.max_new_tokens
    layers = kept["sampler"] = decoding_shapes(policy.model, params, policy.partition.axes)
    slots = kept["slots"] = slots_of(policy.model, rows, length)
    return _Run(config, policy, critic, reward, layers, slots, kept)


def _params(program: Program) -> PyTree:
    return tree.join(program.state_shapes.trainable, program.frozen_shapes)


def _layouts(run: _Run) -> list[Call]:
    """The base once, and in each iteration the adapter; of a policy without one, all of it each time."""
    params, layers = _params(run.policy), run.layers
    if run.config.method == "full":
        return [Call("layout", "policy", 1, _layout(run, params, layers, run.beside(params)))]
    (adapter, base), (of_adapter, of_base) = (tree.split(each, paths.is_adapter) for each in (params, layers))
    # When the base is laid out, no sampler is there yet.
    first = run.beside(base, layers, run.slots)
    return [
        Call("layout", "base, once", 0, _layout(run, base, of_base, first)),
        Call("layout", "adapter", 1, _layout(run, adapter, of_adapter, run.beside(adapter))),
    ]


def _layout(run: _Run, params: PyTree, layers: PyTree, beside: int) -> Lowered:
    places = jax.tree.map(lambda leaf: leaf.sharding, layers)
    lay = functools.partial(in_layers, jnp.dtype(run.policy.model.compute.dtype))
    traced = jax.jit(lay, out_shardings=places).trace(params)
    return Lowered(traced, run.policy.mesh, {"parameters": params}, 0, [], beside=beside)


def _generation(run: _Run) -> list[Call]:
    """Prompts are read but for their last tokens, which are decoded with those that are sampled."""
    sampling, model, slots = run.config.rollout, run.policy.model, run.slots
    rows, length = slots.tokens.shape
    readers, beside = readers_of(rows) * sharding.size_of("batch"), run.beside(run.layers, slots)
    pieces = _pieces(longest_prompt(run.config) - 1, chunks_of(length))
    groups, waves = -(-sampling.prompts // readers), -(-sampling.completions // rows)
    calls = []
    for size, count in pieces.items():
        lowered = replace(prefill_step(model, run.layers, slots, readers, size), beside=beside)
        calls.append(Call("generation", f"reading {readers} x {size} tokens", count * groups, lowered))
    lowered = replace(decode_step(model, run.layers, slots), beside=beside)
    return [*calls, Call("generation", f"a token of {rows} rows", waves * sampling.max_new_tokens, lowered)]


def _pieces(left: int, chunks: Sequence[int]) -> Counter[int]:
    """How often a prompt is read in pieces of each size."""
    found = Counter[int]()
    while left > 0:
        size = chunk_size(chunks, left)
        found[size] += 1
        left -= size
    return found


def _scoring(run: _Run) -> list[Call]:
    """What each role says of the completions; the reference is the base of an adapter, or a model as the policy."""
    config, policy, critic = run.config, run.policy.model, run.critic.model
    params = _params(run.policy)
    logprobs = functools.partial(row_logprobs.trace, policy, config.rollout.temperature)
    scores = functools.partial(row_scores.trace, critic)
    found = [("policy", policy, logprobs, params)]
    if config.kl.coefficient:
        found.append(("reference", policy, logprobs, params if config.method == "full" else without_adapter(params)[0]))
    found.append(("critic", critic, scores, _params(run.critic)))
    if run.reward is not None:
        found.append(("reward model", critic, scores, run.reward))
    # As for updates, all completions are taken to be as long as they may be.
    a_row = config.row_length // (longest_prompt(config) + config.rollout.max_new_tokens)
    times = -(-config.rollout.completions // (a_row * config.training.batch_size))
    return [Call("scoring", name, times, _reading(run, model, trace, each)) for name, model, trace, each in found]


def _reading(run: _Run, model: LanguageModel, trace: Callable[..., jax.stages.Traced], params: PyTree) -> Lowered:
    mesh, size, length = run.policy.mesh, run.config.training.batch_size, run.config.row_length
    batch = batch_shapes(mesh, TokenBatch, size, length)
    adapter = tree.size(tree.split(params, paths.is_adapter)[0])
    # A third of what training takes is the forward pass.
    flops = size * length * (flops_per_token(model, length) // 3 + 2 * adapter)
    _, turns = attention_of(model, size, length)
    held = {"parameters": params, "batch": batch}
    return Lowered(trace(params, batch), mesh, held, flops, [], turns, run.beside(params))


def _updates(run: _Run) -> list[Call]:
    calls = []
    for name, program in (("policy", run.policy), ("critic", run.critic)):
        _, lowered = training_step(program)
        beside = run.beside(program.state_shapes, program.frozen_shapes)
        calls.append(Call("update", name, run.config.updates, replace(lowered, beside=beside)))
    return calls
