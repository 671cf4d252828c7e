"""Fine-tuning a model on examples, from opening it to the answers it gives afterwards: what SFT and LoRA share.

What differs between them is a `Method`: which parameters there are, which of them train, what a checkpoint holds."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.sharding import Mesh

from llama_jax.checkpoints.adapters.base_identity import BASE_FILE
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.checkpoints.opening import ModelReference, OpenParams, find_model, open_params, tokenizer_for
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core import placing, tree
from llama_jax.core.arrays import PRNGKeyArray, PyTree
from llama_jax.core.distributed import is_main_process, start_up
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run import RunDirectory, keep_config, open_run
from llama_jax.data.instructions.loader import ExampleLoader
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import Tokenizer
from llama_jax.inference.samples import Samples
from llama_jax.model.config import SIZES, LlamaConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.model.quantized import StorageType
from llama_jax.objectives.next_token import next_token
from llama_jax.runs.config import RunConfig
from llama_jax.runs.description import compiled_report, description
from llama_jax.runs.held_out import HeldOut
from llama_jax.runs.run import Task, begun_config, begun_schedule, raise_if_stopped, train, with_schedule
from llama_jax.supervised.config import FineTuningConfig
from llama_jax.training.program import Partition, Program, make_program
from llama_jax.training.state import TrainState


@dataclass(frozen=True)
class Method:
    """What a way of fine-tuning does with a model."""

    partition: Callable[[LanguageModel], Partition]
    """The parameters of the run and which of them train."""
    begin: Callable[[PyTree, PRNGKeyArray], PyTree]
    """All parameters of a run that begins, from those of the model. May use their memory."""
    store: StorageType = "float32"
    """How the parameters of the model are kept."""
    dropout: float = 0.0
    """Before the factors of an adapter."""
    item: str = "params"
    """See `Task.item`."""
    is_saved: Callable[[str], bool] = lambda path: True
    """Which parameters a checkpoint holds, by path. The others are the model's, opened again when a run goes on."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files for each checkpoint."""


def architecture_of(config: FineTuningConfig) -> LlamaConfig:
    """That of `config.size`, or else what the model's files say."""
    return SIZES[config.size] if config.size else open_weights(_path(config), step=config.step, say=print).config


def build(
    config: RunConfig,
    method: Method,
    architecture: LlamaConfig,
    sequence_length: int,
    devices: Sequence[Any] | None = None,
) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; allocates nothing."""
    model = language_model(architecture, config.compute, method.dropout)
    mesh = make_mesh(config.mesh, devices)
    objective = next_token(model, config.training.z_loss)
    with jax.set_mesh(mesh):
        partition = method.partition(model)
        return make_program(model, objective, config.training, sequence_length, config.seed, partition)


def open_examples(
    config: FineTuningConfig,
    path: str,
    *,
    rows_of: Callable[[int], Sequence[int]] | None = None,
    say: Callable[[str], None],
) -> tuple[Weights, Tokenizer, ExampleLoader]:
    """The model at a path (nothing of its weights is read), its tokenizer, and the examples as training takes them;
    `rows_of` as in `ExampleLoader`."""
    weights = open_weights(path, step=config.step, say=say)
    tokenizer = tokenizer_for(weights.files, weights.config, path, given=config.tokenizer)
    batch_size_at = config.training.batch_size_at
    loader = ExampleLoader(config.data, tokenizer, config.seed, batch_size_at=batch_size_at, rows_of=rows_of, say=say)
    return weights, tokenizer, loader


def fine_tune(config: FineTuningConfig, method: Method, *, command: str, free: Sequence[str]) -> None:
    """Run the command.

    Args:
        free: settings that may differ when a run goes on.
    """
    who = start_up(config.distributed)
    if config.dry_run:
        program = build(config, method, architecture_of(config), config.data.sequence_length)
        if is_main_process():
            print(f"{who}\n{description(program, config.size or _path(config))}\n{compiled_report(program)}")
        return
    # Said in full, so that the same command goes on with the same model when there are newer runs.
    config = replace(config, model=config.model or begun_config(config.run_dir).get("model") or _path(config))
    config = with_schedule(config) if config.epochs is None else _as_begun(config)
    run = open_run(
        config.run_dir,
        config,
        command=command,
        free=free,
        resume=config.resume,
        is_main_process=is_main_process(),
    )
    try:
        run.say(who)
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            _fine_tune(config, method, run, mesh, command)
    finally:
        run.close()


def _fine_tune(config: FineTuningConfig, method: Method, run: RunDirectory, mesh: Mesh, command: str) -> None:
    """Everything between opening the run and closing it."""
    path = str(config.model)
    rows_of = functools.partial(placing.local_rows, mesh)
    weights, tokenizer, loader = open_examples(config, path, rows_of=rows_of, say=run.say)
    _check_size(config, weights.config, path)
    for line in loader.description():
        run.say(f"data: {line}")
    if config.epochs is not None:
        config = _with_steps(config, loader.steps_of_epochs(config.epochs, config.training.batch_size))
        keep_config(run, config, command)
    program = build(config, method, weights.config, config.data.sequence_length)
    run.say(description(program, weights.source))

    def opened() -> OpenParams:
        reference = ModelReference(path, config.step)
        return open_params(reference, config.compute, store=method.store, identify=needs_model, say=run.say)

    needs_model = not all(map(method.is_saved, tree.flatten(program.frozen_shapes)))
    model = opened() if needs_model else None
    stop_ids = _stop_ids(tokenizer, loader.layout)
    files = _model_files(weights, tokenizer, loader.layout, stop_ids)
    hashes = {"tokenizer": tokenizer.fingerprint}
    elsewhere = {}
    if model is not None:
        files[BASE_FILE] = model.identity.to_json()
        hashes["base"] = model.identity.fingerprint
        elsewhere = tree.split(model.params, lambda path: not method.is_saved(path))[0]
    rows = config.training.batch_size // config.training.microbatches
    held_out = HeldOut(program.model, lambda: loader.validation_batches(rows), run)
    prompts = loader.prompts(config.samples.prompts, config.samples.held_out)
    samples = Samples(program.model, tokenizer, prompts, config.samples.max_new_tokens, stop_ids)
    if left_out := len(prompts) - len(samples.prompts):
        run.say(f"samples: {left_out} of {len(prompts)} prompts are too long for the model's context, and left out")

    def fresh() -> tuple[TrainState, PyTree]:
        params = (model or opened()).params
        return program.begin(method.begin(params, jax.random.key(config.seed)))

    def opening(first: int, state: TrainState, frozen: PyTree) -> None:
        params = tree.join(state.trainable, frozen)
        before = held_out.begin(None if first else params)
        samples.begin(run, first)
        if first == 0:
            if before is not None:
                run.say(f"held-out loss before training: {before:.4f} nats per loss-bearing token")
            samples.take(0, params)

    def evaluate(state: TrainState, frozen: PyTree) -> MetricsRecord:
        params = tree.join(state.trainable, frozen)
        samples.take(int(state.batches), params)
        return held_out(params)

    task = Task(
        program=program,
        data=loader,
        fresh=fresh,
        evaluate=evaluate,
        files={**files, **method.files},
        hashes=hashes,
        opening=opening,
        item=method.item,
        kept=method.is_saved,
        elsewhere=elsewhere,
    )
    try:
        outcome = train(config, run, task)
    finally:
        samples.close()
    if outcome is not None:
        raise_if_stopped(outcome, config)
        _say_result(run, held_out, samples)


def _model_files(weights: Weights, tokenizer: Tokenizer, layout: Layout, stop_ids: tuple[int, ...]) -> dict[str, bytes]:
    """What makes a checkpoint usable by itself, by path: architecture, tokenizer, and the template, so that whoever
    uses the model asks it the way it was taught."""
    files = {f"model/{name}": content for name, content in {**weights.files, **tokenizer.files()}.items()}
    files["model/config.json"] = json.dumps(weights.config.to_json(), indent=2).encode()
    files["model/chat_template.jinja"] = layout.chat_template.encode()
    if stop_ids != tokenizer.stop_ids:
        files["model/generation_config.json"] = json.dumps({"eos_token_id": stop_ids}, indent=2).encode()
    return files


def _stop_ids(tokenizer: Tokenizer, layout: Layout) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's, and the one that the template ends answers with."""
    end = layout.end_id
    return tokenizer.stop_ids if end is None or end in tokenizer.stop_ids else (*tokenizer.stop_ids, end)


def _path(config: FineTuningConfig) -> str:
    return find_model(config.model, lambda line: print(line, flush=True))


def _as_begun(config: FineTuningConfig) -> FineTuningConfig:
    """With the schedule of the run, if it has begun; else its end is known when the examples are counted."""
    schedule_steps = begun_schedule(config.run_dir) or config.training.schedule_steps
    return replace(config, training=replace(config.training, schedule_steps=schedule_steps))


def _with_steps(config: FineTuningConfig, steps: int) -> FineTuningConfig:
    """With the steps that the epochs take."""
    schedule_steps = config.training.schedule_steps or steps
    return replace(config, training=replace(config.training, steps=steps, schedule_steps=schedule_steps))


def _check_size(config: FineTuningConfig, architecture: LlamaConfig, path: str) -> None:
    """Raise a `UserError` if the model is not of the size that the config names."""
    if config.size is None:
        return
    expected, found = SIZES[config.size].to_json(), architecture.to_json()
    # Formats differ in what they keep of these, and none of them decides a shape.
    of_no_shape = ("context_length", "vocab_multiple", "norm_epsilon", "rope_base", "rope_scaling")
    for name, value in expected.items():
        if name not in of_no_shape and found[name] != value:
            raise UserError(f"--size {config.size}: has {name} {value}, but {path} has {found[name]}")


def _say_result(run: RunDirectory, held_out: HeldOut, samples: Samples) -> None:
    """Say what came of it."""
    for line in samples.changes():
        run.say(line)
    if (last := held_out.last) is not None:
        gain, error = last.get("validation_gain"), last.get("validation_gain_standard_error")
        spread = "" if error is None else f" ± {error:.4f} (standard error, paired)"
        compared = "" if gain is None else f", {gain:.4f}{spread} below that before training"
        run.say(f"held-out loss: {last['validation_loss']:.4f} nats per loss-bearing token{compared}")
    run.say(f"checkpoint, metrics.jsonl, samples.jsonl and curves.png are in {run.path}")
    run.say(f'try it: python -m llama_jax.generate --model {run.path} --chat --prompt "…"')
