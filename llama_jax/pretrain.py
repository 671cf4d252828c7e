"""Train a LLaMA from scratch on text: `python -m llama_jax.pretrain`."""

if __name__ == "__main__":
    from llama_jax.__main__ import main

    main("pretrain")

import dataclasses
import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from llama_jax.checkpoints.steps import delete_after
from llama_jax.checkpoints.store import Checkpoints, Restored, restore
from llama_jax.config import FREE_ON_RESUME, PretrainConfig
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.curves import draw_curves
from llama_jax.core.distributed import StopSignal, gathered, is_main_process, made_once, start_up
from llama_jax.core.errors import SavedAfterSignal, SaveFailedError, UserError
from llama_jax.core.files import write_whole
from llama_jax.core.profiling import Profiler
from llama_jax.core.run import RunDirectory, load_config, open_run
from llama_jax.core.tracking import JsonLines, TensorBoard, Terminal, WeightsAndBiases, read_metrics
from llama_jax.data.documents import Documents
from llama_jax.data.loader import (
    Loader,
    State,
    merge_states,
    own_part,
    text_bytes,
    validation_batches,
    zlib_bits_per_byte,
)
from llama_jax.data.mixture import Mixture, open_mixture
from llama_jax.data.progress import progress
from llama_jax.data.streams import Batch
from llama_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from llama_jax.evals.perplexity import perplexity
from llama_jax.model.attention import choose
from llama_jax.model.flops import CONVENTION
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.training.loop import Hooks, Record, fit
from llama_jax.training.program import Program, checkpoint_items, from_checkpoint_items, make_program
from llama_jax.training.state import TrainState


def build(config: PretrainConfig) -> Program:
    """The run as compiled functions over the mesh of its config; allocates nothing."""
    model = language_model(config.model.architecture, config.compute)
    mesh = sharding.make_mesh(config.mesh)
    objective = next_token(model, config.training.z_loss)
    with jax.set_mesh(mesh):
        return make_program(mesh, model, objective, config.training, config.data.sequence_length, config.seed)


def pretrain(config: PretrainConfig) -> None:
    """Run the command."""
    who = start_up(config.distributed)
    if config.dry_run:
        program = build(config)
        if is_main_process():
            print(f"{who}\n{description(program, config)}\n{_compiled_report(program)}")
        return
    config = _with_schedule(config)
    run = open_run(
        config.run_dir,
        config,
        command="pretrain",
        free=FREE_ON_RESUME,
        resume=config.resume,
        is_main_process=is_main_process(),
    )
    try:
        run.say(who)
        _train(config, run)
    finally:
        run.close()


def _train(config: PretrainConfig, run: RunDirectory) -> None:
    """Everything between opening the run and closing it."""
    program = build(config)
    run.say(description(program, config))
    training, held_out = open_mixture(config.data).hold_out(config.data.validation_fraction)
    for line in training.description():
        run.say(f"data: {line}")
    tokenizer = _tokenizer(config, run, training)
    loader = Loader(
        training,
        tokenizer,
        config.data,
        config.seed,
        batch_size_at=config.training.batch_size_at,
        rows_of=functools.partial(sharding.local_rows, program.mesh),
        # Each process reads streams of its own, and only it knows their bad records.
        say=run.say if is_main_process() else functools.partial(print, flush=True),
    )
    with jax.set_mesh(program.mesh), StopSignal() as signal:
        state, frozen, position = _initial_state(config, run, program, loader.fingerprint)
        first = int(state.batches)
        if first == config.training.steps:
            run.say(f"{run.path} is already at step {first}; ask for more with --training.steps")
            return
        if first:
            run.say(f"going on from step {first}")
        checkpoints = Checkpoints(run.checkpoints, config.checkpoints, say=run.say)
        if is_main_process():
            checkpoints.clean_up()
        files = _model_files(config, tokenizer)
        hashes = {
            "config": hashlib.sha256(files["model/config.json"]).hexdigest(),
            "tokenizer": tokenizer.fingerprint,
            "pipeline": loader.fingerprint,
        }
        validation = _Validation(config, program, tokenizer, held_out)
        consumed = _Consumed(training, config.data.streams)
        profiler = Profiler(run.profile, config.tracking)

        def save(step: int, state: TrainState, frozen: PyTree, position: Any) -> None:
            name = f"data/position-{jax.process_index():05}-of-{jax.process_count():05}.json"
            shared = files if is_main_process() else {}
            contents = shared | {name: json.dumps(position).encode()}
            checkpoints.save(step, checkpoint_items(state, frozen), contents, hashes)

        with _Recorder(config, run, first) as record:

            def evaluate(state: TrainState, frozen: PyTree) -> Record:
                return validation(state, frozen) | consumed.record()

            hooks = Hooks(record=record, evaluate=evaluate, save=save, stop=signal.requested, trace=profiler.step)
            run.say("compiling… (the first step may take minutes on large models)")
            loader.start(position)
            try:
                data = _placed(program, consumed.noted(loader))
                state, stopped = fit(program, state, frozen, data, hooks, config.checkpoints.every)
            finally:
                loader.close()
                profiler.close()
                checkpoints.close()  # an error of the data is no reason to lose a save that is under way
            checkpoints.wait()
        if int(state.batches) not in checkpoints.steps():
            raise SaveFailedError(f"step {int(state.batches)}, the last, could not be saved; see above")
        _finish(config, run, validation, stopped, int(state.batches))


def description(program: Program, config: PretrainConfig) -> str:
    """What will be run: model, mesh, chosen implementations, FLOPs and tokens."""
    model, training = program.model, config.training
    length, rows = program.sequence_length, training.batch_size
    total = program.tokens_until(training.steps)
    axes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    attention = choose(config.compute.attention, length, length)
    trainable = tree.size(program.state_shapes.trainable)
    share = "" if program.frozen_shapes == {} else f", {trainable:,} of them trainable"
    return "\n".join(
        [
            f"model: {config.model.size}, {model.parameter_count():,} parameters{share}, {config.compute.dtype}, "
            f"attention {attention}, remat {config.compute.remat}",
            f"mesh: {axes} = {program.mesh.size} devices",
            f"batch: {rows:,} rows x {length:,} tokens = {rows * length:,} tokens a step"
            + (f", ramp {[list(stage) for stage in training.batch_ramp]}" if training.batch_ramp else ""),
            f"training: {training.steps:,} steps, {total:,} tokens, {total / model.parameter_count():.1f} tokens a "
            "parameter",
            f"FLOPs: {program.flops_per_token:,} a token, {program.flops_per_token * total:.3g} in all ({CONVENTION})",
        ]
    )


def _compiled_report(program: Program) -> str:
    """Bytes on each device, by kind, from the compiled step."""
    started = time.perf_counter()
    rows = program.config.batch_size
    with jax.set_mesh(program.mesh):
        compiled = program.step.lower(  # pyright: ignore[reportFunctionMemberAccess]
            program.state_shapes, program.frozen_shapes, program.batch_shapes(rows)
        ).compile()
    state = program.state_shapes
    kinds = {
        "parameters": (state.trainable, program.frozen_shapes),
        "optimizer": (state.optimizer_state, state.guard),
        "batch": program.batch_shapes(rows),
    }
    lines = [f"{kind:<12}{_bytes_on_a_device(shapes):>20,} bytes a device" for kind, shapes in kinds.items()]
    memory = compiled.memory_analysis()
    lines.append(f"{'temporary':<12}{memory.temp_size_in_bytes:>20,} bytes a device, as compiled for this platform")
    return "\n".join([*lines, f"compiled in {time.perf_counter() - started:.1f} s"])


def _bytes_on_a_device(shapes: PyTree) -> int:
    def size(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        count = leaf.dtype.itemsize
        for length in shape:
            count *= length
        return count

    return sum(map(size, jax.tree.leaves(shapes)))


def _with_schedule(config: PretrainConfig) -> PretrainConfig:
    """The config with the end of the schedule spelled out: that of the run, if it has begun, else the last step."""
    if config.training.schedule_steps is not None:
        return config
    schedule_steps = config.training.steps
    run = RunDirectory(config.run_dir)
    if run.config_path.exists() and run.has_progress():
        begun = load_config(config.run_dir).get("training", {}).get("schedule_steps")
        if isinstance(begun, int):
            schedule_steps = begun
    if schedule_steps != config.training.steps and is_main_process():
        print(f"the learning-rate schedule still ends at step {schedule_steps}, as the run began")
    return dataclasses.replace(config, training=dataclasses.replace(config.training, schedule_steps=schedule_steps))


def _tokenizer(config: PretrainConfig, run: RunDirectory, training: Mixture) -> Tokenizer:
    """The tokenizer named, or that of the prepared sources, or the run's own, trained at its start.

    Raises:
        UserError: it has more tokens than the model.
    """
    vocab_size = config.model.vocab_size
    kept = run.path / "tokenizer.model"
    named = config.data.tokenizer or training.tokenizer_directory
    if named is not None:
        tokenizer = load_tokenizer(named)
    else:

        def keep() -> bytes:
            # Before the first step the configuration may still change, so a tokenizer from then is made anew.
            if not kept.exists() or not run.has_progress():
                count = sum(len(source.documents) for source in training.sources)
                run.say(f"training a tokenizer of {vocab_size} pieces on {count} documents")
                trained = train_tokenizer(training.texts(), vocab_size)
                write_whole(kept, trained.to_bytes())
            return kept.read_bytes()

        tokenizer = load_tokenizer(kept, made_once(keep))
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"data.tokenizer: {named or kept} has {tokenizer.vocab_size} tokens, more than "
            f"model.vocab_size {vocab_size}"
        )
    return tokenizer


def _model_files(config: PretrainConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    """What makes a checkpoint usable by itself: model config and tokenizer."""
    return {
        "model/config.json": json.dumps(config.model.architecture.to_json(), indent=2).encode(),
        f"model/{tokenizer.file_name}": tokenizer.to_bytes(),
    }


def _initial_state(
    config: PretrainConfig, run: RunDirectory, program: Program, pipeline: str
) -> tuple[TrainState, PyTree, Any]:
    """State, frozen parameters and data position of the newest checkpoint that verifies, or fresh ones.

    Raises:
        UserError: the checkpoint does not fit the model or the data.
    """
    restored: Restored | None = None
    if config.resume != "never":
        step = None if config.resume == "auto" else config.resume
        targets = checkpoint_items(program.state_shapes, program.frozen_shapes)
        restored = restore(run.checkpoints, targets, files=("data",), step=step, say=run.say)
        if restored is not None and step is not None and is_main_process():
            for dropped in delete_after(run.checkpoints, step):
                run.say(f"--resume {step}: checkpoint step {dropped} dropped")
    if restored is None:
        state, frozen = program.init(jax.random.key(config.seed))
        return state, frozen, None
    if restored.manifest.hashes["pipeline"] != pipeline:
        raise UserError(
            f"--run_dir {run.path}: the documents or the tokenizer are not those the run began with; restore them, or "
            "choose another --run_dir"
        )
    if restored.step > config.training.steps:
        raise UserError(f"training.steps: {config.training.steps}, but {run.path} is already at step {restored.step}")
    position = merge_states([json.loads(content) for content in restored.files.values()])
    state, frozen = from_checkpoint_items(restored.items, program.state_shapes)
    return state, frozen, position


def _placed(program: Program, batches: Iterable[tuple[Batch, State]]) -> Iterator[tuple[TokenBatch, State]]:
    """The loader's batches on the mesh."""
    for rows, position in batches:
        size = program.config.batch_size_at(position["step"] - 1)
        yield sharding.place_batch(program.mesh, rows, size), position


class _Consumed:
    """What training has read so far, as of the batch that was handed out last."""

    def __init__(self, mixture: Mixture, streams: int) -> None:
        self._mixture = mixture
        self._streams = streams
        self._state: State = {"step": 0, "row": 0, "streams": {}}

    def noted(self, batches: Iterable[tuple[Batch, State]]) -> Iterator[tuple[Batch, State]]:
        for rows, self._state in batches:
            yield rows, self._state

    def record(self) -> Record:
        """Epochs of each source and documents dropped, over all processes, all of which call this together."""
        own = json.dumps(own_part(self._state, self._streams)).encode()
        states = [json.loads(content) for content in gathered(own)]
        told = progress(merge_states(states)["streams"], self._mixture)
        dropped = sum((source.dropped for source in told.values()), Counter())
        epochs = {name: source.epochs for name, source in told.items()}
        return {"epochs": epochs} | ({"dropped_records": dict(sorted(dropped.items()))} if dropped else {})


class _Validation:
    """Evaluates on the held-out documents; remembers the last result."""

    def __init__(self, config: PretrainConfig, program: Program, tokenizer: Tokenizer, documents: Documents) -> None:
        self.documents = documents
        self.last: Record | None = None
        self.tokenizer = tokenizer
        self._model = program.model
        self._bytes = text_bytes(documents, tokenizer)
        rows = config.training.batch_size // config.training.microbatches
        self._batches = lambda: validation_batches(documents, tokenizer, config.data, rows)

    def __call__(self, state: TrainState, frozen: PyTree) -> Record:
        params = tree.join(state.trainable, frozen)
        self.last = perplexity(self._model, params, self._batches(), self._bytes)
        return {"validation_loss": self.last["loss"], "validation_bits_per_byte": self.last["bits_per_byte"]}


class _Recorder:
    """Sends each record to every sink, on the main process; a context manager that gives the function to call."""

    def __init__(self, config: PretrainConfig, run: RunDirectory, first: int) -> None:
        self._sinks = []
        if is_main_process():
            self._sinks = [
                JsonLines(run.metrics, first),
                Terminal(config.training.steps, config.tracking.log_every, run.say),
            ]
            if config.tracking.tensorboard:
                self._sinks.append(TensorBoard(run.tensorboard, first, run.say))
            if config.tracking.wandb:
                self._sinks.append(WeightsAndBiases(run.path, config.tracking.wandb, dataclasses.asdict(config)))

    def __enter__(self) -> Callable[[Record], None]:
        return self._write

    def _write(self, record: Record) -> None:
        for sink in self._sinks:
            sink.write(record)

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()


def _finish(config: PretrainConfig, run: RunDirectory, validation: _Validation, stopped: bool, step: int) -> None:
    """Draw the curves and say how it went.

    Raises:
        SavedAfterSignal: the run was ended by a signal.
    """
    if is_main_process():
        draw_curves(read_metrics(run.metrics), run.curves)
    if stopped:
        raise SavedAfterSignal(f"saved step {step} of {config.training.steps} after a signal; the same command goes on")
    if validation.last is not None and is_main_process():
        run.say(
            f"validation on {len(validation.documents)} held-out documents: "
            f"{validation.last['bits_per_byte']:.3f} bits per byte ({validation.last['loss']:.4f} nats per token); "
            f"zlib needs {zlib_bits_per_byte(validation.documents, validation.tokenizer):.3f} for the same text"
        )
        run.say(f"checkpoint, metrics.jsonl and curves.png are in {run.path}")
        run.say(f'try it: python -m llama_jax.generate --model {run.path} --prompt "The "')
