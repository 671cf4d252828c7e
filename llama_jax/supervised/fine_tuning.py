"""Fine-tuning a model, from opening it to the answers it gives afterwards.

A command says two things: a `Method`, which parameters train and how they are kept, and a `Supervision`, by which loss
and on what data, and how that is measured. Neither knows of the other."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax

from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.mesh import make_mesh
from llama_jax.core.placing import local_rows
from llama_jax.core.processes.distributed import start_up
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory, keep_config
from llama_jax.data.instructions.loader import Prompt
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.rows.streams import Rows
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.samples import Samples
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.objective import Objective
from llama_jax.runs.config import FREE_ON_RESUME
from llama_jax.runs.description import description, print_dry_run
from llama_jax.runs.methods import Method, build_program
from llama_jax.runs.resuming import begun_schedule, opened_run, with_schedule
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
    weights_of,
)
from llama_jax.runs.supervised_run import Data, Task, train
from llama_jax.runs.verdict import Verdict, record_verdict
from llama_jax.supervised.config import FineTuningConfig, SamplesConfig
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState

RowsOf: TypeAlias = Callable[[int], Sequence[int]]
"""Numbers of the rows, in a global batch of the given size, that this process is to supply."""


@runtime_checkable
class FineTuningData(Data, Protocol):
    """The examples of a run, such as `data.instructions.loader.ExampleLoader`, which says what these do. A model that
    gives no text has no prompts."""

    @property
    def layout(self) -> Layout: ...
    def description(self) -> list[str]: ...
    def steps_of_epochs(self, epochs: int | float, batch_size: int) -> int: ...
    def validation_batches(self, batch_size: int) -> Iterator[Rows]: ...
    def prompts(self, texts: Sequence[str], held_out: int) -> list[Prompt]: ...


@runtime_checkable
class Evaluation(Protocol):
    """How what was learned is measured, such as `runs.held_out.HeldOut`, which says what these do."""

    def begin(self, params: PyTree | None) -> Sequence[str]: ...
    def __call__(self, params: PyTree) -> MetricsRecord: ...
    def result(self) -> Sequence[str]: ...
    @property
    def verdict(self) -> Verdict | None: ...


@dataclass(frozen=True)
class Supervision:
    """What a model is to learn."""

    objective: Callable[[LanguageModel], Objective]
    """The loss, and the class of batches that it takes."""
    open_data: Callable[[Tokenizer, RowsOf, Callable[[str], None]], FineTuningData]
    """The examples as such batches."""
    evaluation: Callable[[LanguageModel, FineTuningData, int, RunDirectory], Evaluation]
    """Made of the model, the data, rows of a batch and the run, which keeps the first result."""
    set_reference: Callable[..., None] | None = None
    """Gives the data what the model that the run begins with makes of them; see `supervised.reference`."""
    measured_files: Callable[[MetricsRecord], Mapping[str, bytes]] = lambda record: {}
    """See `Task.measured_files`."""
    samples: SamplesConfig | None = None
    """Answers to take while training; None: of a model that gives no text."""
    use: str = 'generate --model {run} --chat --prompt "…"'
    """The command with which to try what was learned."""


def build(
    config: FineTuningConfig, method: Method, supervision: Supervision, devices: Sequence[Any] | None = None
) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    length = config.data.sequence_length
    return build_program(config, method, supervision.objective, architecture_of(config), length, devices)


def fine_tune(config: FineTuningConfig, method: Method, supervision: Supervision, *, command: str) -> None:
    """Train in the run directory of the configuration, from the model that it names or from the newest checkpoint.

    Raises:
        UserError: the model, the data or the run do not fit the configuration.
        SavedAfterSignal: a signal ended it before the last step.
    """
    who = start_up(config.distributed)
    if config.dry_run:
        print_dry_run(who, build(config, method, supervision), config.size or path_of(config))
        return
    config = named_in_full(config)
    config = replace(config, data=replace(config.data, template_date=begun_date(config, config.data.template_date)))
    config = with_schedule(config) if config.epochs is None else _as_begun(config)
    free = (*FREE_ON_RESUME, *method.free_on_resume)
    with opened_run(config, command, free) as run, jax.set_mesh(make_mesh(config.mesh)):
        run.say(who)
        _fine_tune(config, method, supervision, run, command)


def _fine_tune(
    config: FineTuningConfig, method: Method, supervision: Supervision, run: RunDirectory, command: str
) -> None:
    """Everything between opening the run and closing it."""
    path, mesh = str(config.model), jax.sharding.get_mesh()
    weights = weights_of(config, method, run)
    tokenizer = tokenizer_of(config, weights, path, config.data.template_date)
    data = supervision.open_data(tokenizer, functools.partial(local_rows, mesh), run.say)
    for line in data.description():
        run.say(f"data: {line}")
    if config.epochs is not None:
        config = _with_steps(config, data.steps_of_epochs(config.epochs, config.training.batch_size), run.say)
        keep_config(run, config, command)
    program = build_program(config, method, supervision.objective, weights.config, config.data.sequence_length)
    run.say(description(program, weights.source))
    files = model_files(weights, method.architecture(weights.config), tokenizer, data.layout)
    start = start_of(config, method, program, files, run, command)
    config, base = replace(config, step=start.step), start.base
    rows = config.training.batch_size // config.training.microbatches
    if supervision.set_reference is not None:
        identity = [path, config.step] if base is None else base.identity.fingerprint
        supervision.set_reference(data, program.model, lambda: start.open_model().params, identity, rows, run)
    evaluation = supervision.evaluation(program.model, data, rows, run)
    measured = _Measured(evaluation, _samples(supervision.samples, program.model, tokenizer, data, run), run)
    task = Task(
        program=program,
        data=data,
        fresh=start.fresh,
        evaluate=measured.evaluate,
        files=start.files,
        hashes={"tokenizer": tokenizer.fingerprint, **start.hashes},
        measured_files=supervision.measured_files,
        before_training=measured.before_training,
        check_restored=functools.partial(check_restored, method, base, run),
        params_item=method.params_item,
        is_saved=method.is_saved,
        unsaved_params=start.unsaved_params,
    )
    with contextlib.closing(measured):
        if train(config, run, task):
            measured.say_result(supervision.use)


class _Measured:
    """The held-out evaluation and the answers to fixed prompts, before training and at each evaluation."""

    def __init__(self, evaluation: Evaluation, samples: Samples | None, run: RunDirectory) -> None:
        self._evaluation, self._samples, self._run = evaluation, samples, run

    def before_training(self, step: int, state: TrainState, frozen: PyTree) -> None:
        params = tree.join(state.trainable, frozen)
        for line in self._evaluation.begin(None if step else params):
            self._run.say(line)
        if self._samples is not None:
            self._samples.begin(self._run, step)
            if step == 0:
                self._samples.take(0, params)

    def evaluate(self, state: TrainState, frozen: PyTree) -> MetricsRecord:
        params = tree.join(state.trainable, frozen)
        if self._samples is not None:
            self._samples.take(int(state.batches), params)
        return self._evaluation(params)

    def close(self) -> None:
        if self._samples is not None:
            self._samples.close()

    def say_result(self, use: str) -> None:
        """Say what came of it, and with which command to try it."""
        changes = [] if self._samples is None else self._samples.changes()
        for line in (*changes, *self._evaluation.result()):
            self._run.say(line)
        if (verdict := self._evaluation.verdict) is not None:
            record_verdict(self._run, verdict)
        self._run.say(f"checkpoint, metrics.jsonl and curves.png are in {self._run.path}")
        self._run.say(f"try it: python -m llama_jax.{use.format(run=self._run.path)}")


def _samples(
    config: SamplesConfig | None,
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: FineTuningData,
    run: RunDirectory,
) -> Samples | None:
    """The answers to the prompts that the configuration names, or to those of the held-out examples."""
    if config is None:
        return None
    prompts = data.prompts(config.prompts, config.held_out)
    samples = Samples(model, tokenizer, prompts, config.max_new_tokens, stop_ids(tokenizer, data.layout))
    if left_out := len(prompts) - len(samples.prompts):
        run.say(f"samples: {left_out} of {len(prompts)} prompts are too long for the model's context, and left out")
    return samples


def _as_begun(config: FineTuningConfig) -> FineTuningConfig:
    """With the schedule of the run, if it has begun; else its end is known when the examples are counted."""
    schedule_steps = begun_schedule(config.run_dir) or config.training.schedule_steps
    return replace(config, training=replace(config.training, schedule_steps=schedule_steps))


def _with_steps(config: FineTuningConfig, steps: int, say: Callable[[str], None]) -> FineTuningConfig:
    """With the steps that the epochs take."""
    if (asked := config.training.steps) not in (TrainingConfig.steps, steps):
        way_out = "--epochs null lets the latter decide"
        say(f"note: --epochs {config.epochs:g} takes {steps:,} steps, not the {asked:,} of --training.steps; {way_out}")
    schedule_steps = config.training.schedule_steps or steps
    return replace(config, training=replace(config.training, steps=steps, schedule_steps=schedule_steps))
