"""One run that learns from rewards, from opening its model to its verdict."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from llama_jax.core import tree
from llama_jax.core.arrays import Float, PyTree
from llama_jax.core.errors import SavedAfterSignal, UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.distributed import JobStopSignal, start_up
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.instructions.templates import Layout
from llama_jax.model.config import SIZES, LlamaConfig
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.objective import Objective
from llama_jax.rl.config import PromptDataConfig, RewardLearningConfig
from llama_jax.rl.learners.opened import Opened
from llama_jax.rl.learners.trained import Role
from llama_jax.rl.loop import Hooks, Learner, Parts, Progress, held_out_rewards, learn
from llama_jax.rl.prompts import PromptData
from llama_jax.rl.rollouts import Sampler, rollout_slots
from llama_jax.runs.config import FREE_ON_RESUME
from llama_jax.runs.description import description, print_dry_run
from llama_jax.runs.history import History
from llama_jax.runs.life import Life, summarize
from llama_jax.runs.methods import Method, all_parameters, build_program, low_rank_adapter
from llama_jax.runs.resuming import begun_config, begun_schedule, opened_run, restore_step
from llama_jax.runs.starting import (
    architecture_of,
    begun_date,
    check_restored,
    model_files,
    named_in_full,
    path_of,
    start_of,
    stop_ids,
    tokenizer_of,
    trained_first,
    weights_of,
    with_merged_model,
)
from llama_jax.runs.verdict import Verdict, mean_and_error, record_verdict
from llama_jax.training.program import Program

_FREE = ("rewards.timeout_seconds", "rewards.memory_bytes", "rewards.failures_allowed")

AnyConfig = TypeVar("AnyConfig", bound=RewardLearningConfig)


class Recipe(NamedTuple):
    """What methods differ in."""

    objective: Callable[[LanguageModel], Objective]
    """The loss of the policy, of batches of `PolicyBatch`."""
    learner: Callable[[Opened[Any]], Learner[Any]]
    """Opens what the method needs beside the policy; called under the mesh."""
    others: Callable[[LlamaConfig, Sequence[Any] | None], Mapping[str, Program]] = lambda architecture, devices: {}
    """The programs of what it trains beside the policy, by name, for a model of some architecture."""
    free_on_resume: tuple[str, ...] = ()
    """Settings that may differ when a run is resumed."""


def build(config: RewardLearningConfig, recipe: Recipe, devices: Sequence[Any] | None = None) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    return _program(config, recipe, architecture_of(config), devices)


def learn_from_rewards(config: RewardLearningConfig, recipe: Recipe, *, command: str) -> None:
    """Train in the run directory of the configuration, from the model that it names or from the newest checkpoint.

    Raises:
        UserError: the model, the prompts, the rewards or the run do not fit the configuration.
        CannotGoOnError: reward functions failed more often than they may, or sampler and training disagree.
        SavedAfterSignal: a signal ended it before the last iteration.
    """
    who = start_up(config.distributed)
    if jax.process_count() > 1:
        raise UserError(f"distributed: {command} runs in one process, on all devices that it has")
    if config.dry_run:
        name = config.size or path_of(config)
        print_dry_run(who, program := build(config, recipe), name)
        for role, other in recipe.others(program.model.config, None).items():
            print_dry_run(role, other, name)
        return
    with _opened(config, recipe, command, who) as run:
        run.live()


class Iterations(NamedTuple):
    """Those of a run, one by one, of completions that nothing ends early. Nothing is evaluated or saved: for
    measurements."""

    prompts: list[list[int]]
    """That the run asks."""
    trained: int
    """Parameters of the policy that train."""
    next: Callable[[], MetricsRecord]
    """Makes one, and returns what a run records of it."""


@contextlib.contextmanager
def iterations(config: RewardLearningConfig, recipe: Recipe, *, command: str) -> Iterator[Iterations]:
    """Open a run as `learn_from_rewards` does, and leave its iterations to the caller.

    Raises:
        UserError: see there.
    """
    config = replace(config, supervise=replace(config.supervise, other_seconds=0))  # none is marked as a step
    with _opened(config, recipe, command, start_up(config.distributed)) as run:
        yield run.iterations()


@contextlib.contextmanager
def _opened(config: RewardLearningConfig, recipe: Recipe, command: str, who: str) -> Iterator["_Run"]:
    config = named_in_full(with_toy_model(config, command))
    config = replace(config, data=replace(config.data, template_date=begun_date(config, config.data.template_date)))
    config = with_schedule(config)
    with (
        opened_run(config, command, (*_free(config), *recipe.free_on_resume)) as run,
        jax.set_mesh(make_mesh(config.mesh)),
    ):
        run.say(who)
        if config.method == "lora":
            config = with_merged_model(config, run)
        yield _Run(config, recipe, run, command)


class _Run:
    """Everything between opening the run and closing it."""

    def __init__(self, config: RewardLearningConfig, recipe: Recipe, run: RunDirectory, command: str) -> None:
        self._config, self._run = config, run
        weights = weights_of(config, method := _method(config), run)
        tokenizer = tokenizer_of(config, weights, str(config.model), config.data.template_date)
        layout = Layout(config.data.template, tokenizer)
        self._data = PromptData(config.data, layout, config.seed, run.say)
        run.say(f"data: {self._data.description()}")
        longest = (self._data.longest, config.rollout.max_new_tokens)
        check_lengths(config, weights.config, longest)
        self._program = _program(config, recipe, weights.config)
        run.say(description(self._program, weights.source))
        files = model_files(weights, method.architecture(weights.config), tokenizer, layout)
        self._start = start = start_of(config, method, self._program, files, run, command)
        self._method, self._stop_ids = method, stop_ids(tokenizer, layout)
        role = Role(self._program, method, start.unsaved_params)
        known = replace(config, step=start.step)
        self._learner = recipe.learner(Opened(known, command, run, self._data, tokenizer, layout, longest, role, start))
        self._hashes = {"tokenizer": tokenizer.fingerprint, **self._start.hashes}

    def live(self) -> None:
        """Train until the last iteration or a signal."""
        config, run, last = self._config, self._run, self._config.training.steps
        history = History(config, run)
        with (signal := JobStopSignal()):
            first, progress, stopped, after = history.lived(lambda: self._one_life(history, signal))
        if first == last:
            run.say(f"{run.path} is already at step {last}; ask for more with --training.steps")
            return
        summarize(config, run)
        if stopped:
            at = progress.iteration
            raise SavedAfterSignal(f"interrupted: saved step {at} of {last}; run the same command to resume")
        self._say_result(progress, after)

    def _one_life(self, history: History, signal: JobStopSignal) -> tuple[int, Progress, bool, list[np.ndarray]]:
        """The iteration that it begins at, where it ends, whether a signal ended it, the rewards of each evaluation.

        Raises:
            SkippedTooOftenError: the run is to go back.
        """
        config, run = self._config, self._run
        state, progress = self._begun_or_resumed(history)
        first, after = progress.iteration, []
        if first == config.training.steps:
            return first, progress, False, after
        if first:
            run.say(f"resuming from step {first}")
        with Life(config, run, first, self._start.files, self._hashes, self._data.fingerprint, history) as life:
            parts = self._parts(self._learner.result(state), self._stop_ids)
            if first == 0:
                # Before anything is written: functions may not bear what they are told.
                with history.goodput.spending("evaluation"):
                    progress = self._measured_before(parts, self._learner.result(state), progress)
                life.begin()  # there is no checkpoint to protect
            run.say("compiling… (the first step may take minutes on large models)")
            hooks = self._hooks(parts, life, signal, history, after)
            state, progress, stopped = learn(self._learner, parts, state, progress, hooks)
            life.finish(progress.iteration)
        return first, progress, stopped, after

    def _begun_or_resumed(self, history: History) -> tuple[Any, Progress]:
        targets = self._learner.targets()
        restored = restore_step(self._config, self._run, targets, self._data.fingerprint, history)
        if restored is None:
            return self._learner.fresh(), Progress()
        check_restored(self._method, self._start.base, self._run, restored.files)
        (position,) = [content for name, content in restored.files.items() if name.startswith("data/")]
        progress = Progress.from_json(json.loads(position))
        return self._learner.restored(restored.items, progress), progress

    def iterations(self) -> Iterations:
        """See `Iterations`."""
        state, progress = self._learner.fresh(), Progress()
        parts = self._parts(self._learner.result(state), ())

        def make() -> MetricsRecord:
            nonlocal state, progress
            state, progress, record = self._learner.iterate(parts, state, progress)
            return record

        trained = tree.size(self._program.state_shapes.trainable)
        return Iterations([prompt.ids for prompt in self._data.training], trained, make)

    def _parts(self, params: PyTree, stop_ids: tuple[int, ...]) -> Parts:
        config = self._config
        length = self._data.longest + config.rollout.max_new_tokens
        slots = rollout_slots(config.rollout, config.rollout.completions)
        sampler = Sampler(self._program.model, params, config.rollout, slots=slots, length=length, stop_ids=stop_ids)
        return Parts(config, self._data, sampler, self._learner.judge, self._run.say)

    def _measured_before(self, parts: Parts, params: PyTree, progress: Progress) -> Progress:
        if not self._data.held_out:
            return progress
        rewards, _ = held_out_rewards(parts, params)
        self._run.say(_shown("before training", rewards))
        return replace(progress, before=tuple(None if np.isnan(each) else float(each) for each in rewards))

    def _hooks(
        self, parts: Parts, life: Life, signal: JobStopSignal, history: History, after: list[np.ndarray]
    ) -> Hooks:
        """What the loop calls; `after` takes the rewards of each evaluation."""

        def evaluate(state: Any) -> MetricsRecord:
            if not self._data.held_out:
                return {}
            with life.evaluating():
                rewards, tokens = held_out_rewards(parts, self._learner.result(state))
            after.append(rewards)
            known = rewards[~np.isnan(rewards)]
            mean = float(known.mean()) if len(known) else None
            return {"held_out_reward": mean, "held_out_tokens_mean": float(tokens.mean())}

        def save(state: Any, progress: Progress, record: MetricsRecord) -> None:
            life.save(self._learner.items(state), progress.to_json(), record)

        return Hooks(life.record, evaluate, save, signal.requested, life.before_step, history.left_out_after)

    def _say_result(self, progress: Progress, after: list[np.ndarray]) -> None:
        run = self._run
        if after:
            run.say(_shown("after training", after[-1]))
            before = np.array([np.nan if each is None else each for each in progress.before], np.float64)
            if (verdict := _verdict(before, after[-1])) is not None:
                record_verdict(run, verdict)
        run.say(f"checkpoint, metrics.jsonl and curves.png are in {run.path}")
        run.say(f'try it: python -m llama_jax.generate --model {run.path} --chat --prompt "…"')


def _shown(when: str, rewards: Float[np.ndarray, "P"]) -> str:
    known = rewards[~np.isnan(rewards)]
    mean = f"mean reward {known.mean():.4f}" if len(known) else "no reward"
    return f"greedy answers to {len(known):,} of {len(rewards):,} held-out prompts, {when}: {mean}"


def _verdict(before: Float[np.ndarray, "P"], after: Float[np.ndarray, "P"]) -> Verdict | None:
    """Of the prompts that have a reward both times; None where there is no such prompt."""
    both = ~np.isnan(before) & ~np.isnan(after)
    if not both.any():
        return None
    mean, error = mean_and_error(after[both])
    _, of_difference = mean_and_error(after[both] - before[both])
    baseline = float(before[both].mean())
    return Verdict("held-out reward", mean, error, "before training", baseline, of_difference, int(both.sum()))


def _method(config: RewardLearningConfig) -> Method:
    if config.method == "full":
        return all_parameters(config.training.trainable)
    return low_rank_adapter(config.lora, config.model_dtype, config.training.peak_learning_rate)


def _free(config: RewardLearningConfig) -> tuple[str, ...]:
    return (*FREE_ON_RESUME, *_FREE, *_method(config).free_on_resume)


def _program(
    config: RewardLearningConfig, recipe: Recipe, architecture: LlamaConfig, devices: Sequence[Any] | None = None
) -> Program:
    """That of the updates: what counts steps in it counts these, not iterations."""
    if config.row_length > architecture.context_length:
        raise UserError(f"row_length: {config.row_length} exceeds the model's context, {architecture.context_length}")
    training = replace(config.training, steps=config.training.steps * config.updates)
    counted = replace(config, training=training)
    return build_program(counted, _method(config), recipe.objective, architecture, config.row_length, devices)


def check_lengths(config: RewardLearningConfig, architecture: LlamaConfig, longest: tuple[int, int]) -> None:
    """See to it that the model reads the longest prompt with the longest completion.

    Raises:
        UserError: it does not.
    """
    if sum(longest) > architecture.context_length:
        raise UserError(
            f"rollout.max_new_tokens: {longest[1]} after a prompt of {longest[0]} tokens exceeds the model's context, "
            f"{architecture.context_length}; take fewer, or leave long prompts out (data.max_prompt_tokens)"
        )


def with_schedule(config: AnyConfig) -> AnyConfig:
    """With the end of the schedule, in updates: that of the run, if it has begun, else the last one."""
    training, updates = config.training, config.training.steps * config.updates
    steps = training.schedule_steps or begun_schedule(config.run_dir) or updates
    if training.schedule_steps is None and training.schedule != "constant" and steps != updates:
        print(f"the learning-rate schedule still ends at update {steps}, as the run began", flush=True)
    return replace(config, training=replace(training, schedule_steps=steps))


def with_toy_model(config: AnyConfig, command: str) -> AnyConfig:
    """For the toy task, where no model is named, one that adds carelessly; it is trained if it is not there.

    Raises:
        UserError: the settings are those for other models.
    """
    if config.model is not None or config.data.source != PromptDataConfig.source or begun_config(config.run_dir):
        return config
    if config.row_length > (most := SIZES["tiny"].context_length):
        raise UserError(
            f"--model: none given, and with row_length {config.row_length} the toy task cannot be learned, whose model "
            f"reads {most} tokens; name a model, or begin with the settings of that task: --config tiny/{command}"
        )
    base, beginner = "runs/tiny", "runs/tiny_sums"
    trained_first("pretrain", "tiny/pretrain", base)
    trained_first("sft", "tiny/sums", beginner, "--model", base)
    return replace(config, model=beginner)
