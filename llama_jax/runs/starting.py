"""A run that begins with a model: finding that model, what of it travels with each checkpoint, and making sure when the
run is resumed that it is still the same. Independent of what is learned."""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import jax
from etils import epath

from llama_jax.checkpoints.adapters.adapter import BASE_FILE, BaseIdentity, check_base
from llama_jax.checkpoints.adapters.merged_weights import with_tokenizer
from llama_jax.checkpoints.config import ConvertConfig, StepChoice
from llama_jax.checkpoints.conversion import convert_model
from llama_jax.checkpoints.conversion_target import REPORT
from llama_jax.checkpoints.finding import find_format
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.checkpoints.opening import ModelReference, OpenParams, find_model, open_params, tokenizer_for
from llama_jax.checkpoints.reward_normalization import without_normalization
from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.processes.signals import run_first
from llama_jax.core.run_directory import RunDirectory, keep_config
from llama_jax.data.instructions.template_dates import today
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import Tokenizer, with_stop_ids
from llama_jax.model.config import SIZES, LlamaConfig
from llama_jax.runs.config import ModelRunConfig
from llama_jax.runs.methods import Method
from llama_jax.runs.resuming import begun_config
from llama_jax.training.program import Program
from llama_jax.training.state import TrainState

AnyModelRunConfig = TypeVar("AnyModelRunConfig", bound=ModelRunConfig)


def path_of(config: ModelRunConfig) -> str:
    """Where the model is that the settings name, or `find_model` finds."""
    return find_model(config.model, lambda line: print(line, flush=True))


def architecture_of(config: ModelRunConfig) -> LlamaConfig:
    """That of the size that the settings name, for which no model need be there, or of the model."""
    return SIZES[config.size] if config.size else open_weights(path_of(config), step=config.step, say=print).config


def trained_first(command: str, name: str, folder: str, *more: str) -> None:
    """Make a run of a bundled config, of a toy task for which no model is named, or go on with it, if it has not ended.

    Raises:
        UserError: it did not end as it should.
        SavedAfterSignal: a signal came, which that command was told of.
    """
    last = begun_config(folder).get("training", {}).get("steps")
    if last in finished_steps(epath.Path(folder) / "checkpoints")[-1:]:
        return
    print(f"no --model given: training one for the toy task first, {command} into {folder}", flush=True)
    line = [sys.executable, "-m", f"llama_jax.{command}", "--config", name, "--run_dir", folder, *more]
    if run_first(line):
        raise UserError("--model: none given, and the one of the toy task could not be trained; see above")


def named_in_full(config: AnyModelRunConfig) -> AnyModelRunConfig:
    """With the model and the checkpoint that the run began with, or begins with now, so that the same command resumes
    with the same when there are newer runs."""
    begun = begun_config(config.run_dir)
    model, step = config.model or begun.get("model") or path_of(config), config.step
    if step in (None, "best") and model == begun.get("model"):
        step = begun.get("step") or step
    return replace(config, model=model, step=step)


def begun_date(config: ModelRunConfig, given: str | None) -> str:
    """The date for a chat template that asks for the clock: the one given, or that on which the run began or begins."""
    return given or begun_config(config.run_dir).get("data", {}).get("template_date") or today()


def weights_of(config: ModelRunConfig, method: Method, run: RunDirectory) -> Weights:
    """The model to begin with, of which nothing is read yet.

    Raises:
        UserError: there is none, or it is not of the size that the settings name.
    """
    try:
        weights = open_weights(str(config.model), step=config.step, say=run.say)
    except UserError as error:
        if "model" not in method.free_on_resume or not run.has_progress():
            raise
        raise UserError(
            f"--run_dir {run.path}: needs the base that it began with: {error}; an export or a copy of it, given as "
            "--model, serves as well"
        ) from None
    _check_size(config, weights.config)
    return weights


def _check_size(config: ModelRunConfig, architecture: LlamaConfig) -> None:
    """Raise a `UserError` if the model is not of the size that the config names."""
    if config.size is None:
        return
    expected, found = SIZES[config.size].to_json(), architecture.to_json()
    # Formats differ in what they keep of these, and none of them decides a shape.
    of_no_shape = ("context_length", "vocab_multiple", "norm_epsilon", "rope_base", "rope_scaling", "scalar_head")
    for name, value in expected.items():
        if name not in of_no_shape and found[name] != value:
            raise UserError(f"--size {config.size}: has {name} {value}, but {config.model} has {found[name]}")


def with_merged_model(config: AnyModelRunConfig, run: RunDirectory) -> AnyModelRunConfig:
    """Where the model is an adapter, with the two merged in the run directory."""
    target, begins = run.path / "base", not run.has_progress()
    # Of an attempt that came to nothing there may be one that was made from another model.
    model = merged(given := str(config.model), "--model", target, run.say, step=config.step, anew=begins)
    if model == given:
        return config
    if begins:
        run.hold(target)
    return replace(config, model=model, step=None)


def merged(
    model: str,
    flag: str,
    target: epath.Path,
    say: Callable[[str], None],
    *,
    step: StepChoice | None = None,
    anew: bool = False,
) -> str:
    """The model itself, or, if it is an adapter, where the two are merged, once, as the base of another adapter: an
    adapter over an adapter is none that others could open.

    Args:
        flag: That names the model, for errors.
        target: The directory that the two are merged in.
        anew: Whether to merge again what was merged there.

    Raises:
        UserError: another adapter was merged there, or something else is there.
    """
    source = None if anew or not target.exists() else json.loads((target / REPORT).read_text())["source"]
    if source is not None and Path(source).resolve() == Path(model).resolve():
        return str(target)
    if find_format(model, flag)[1] not in ("lora", "peft"):
        return model
    if source is not None:
        raise UserError(f"{flag} {model}: {target} was made from {source}; give that, or another --run_dir")
    if open_weights(model, step=step, say=say).config.scalar_head:
        raise UserError(f"{flag} {model}: is a reward model, which has lost its output matrix; take a language model")
    say(f"{model} is an adapter: merging it into its base first, which is then kept in {target}")
    convert_model(ConvertConfig(source=model, step=step, target=str(target), overwrite=anew), say)
    return str(target)


def tokenizer_of(config: ModelRunConfig, weights: Weights, path: str, day: str | None) -> Tokenizer:
    """The tokenizer of the model at a path, or the one that the settings name; its template knows the day."""
    return tokenizer_for(weights.files, weights.config, path, given=config.tokenizer, day=day)


def at_step_of(base: OpenParams, config: AnyModelRunConfig, run: RunDirectory, command: str) -> AnyModelRunConfig:
    """With the checkpoint that the base is; says what it needs."""
    config = replace(config, step=base.identity.step)
    keep_config(run, config, command)
    if base.run is not None:
        name, step = base.run, base.identity.step
        run.say(
            f"note: the adapter needs step {step} of {name}, which that run may remove when it goes on; an export is "
            f"a base as good: llama-jax convert --source {name} --step {step} --target …"
        )
    return config


def model_files(weights: Weights, architecture: LlamaConfig, tokenizer: Tokenizer, layout: Layout) -> dict[str, bytes]:
    """What makes a checkpoint usable by itself, by path: architecture, tokenizer, and the template, so that whoever
    uses the model asks it the way it was taught, and stops where it was taught to."""
    kept = without_normalization(weights.files)  # which are of the model to begin with
    told = with_stop_ids(with_tokenizer(kept, tokenizer.files()), stop_ids(tokenizer, layout))
    files = {f"model/{name}": content for name, content in told.items()}
    files["model/config.json"] = json.dumps(architecture.to_json(), indent=2).encode()
    files["model/chat_template.jinja"] = layout.chat_template.encode()
    return files


def stop_ids(tokenizer: Tokenizer, layout: Layout) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's, and the one that the template ends answers with."""
    return tuple(dict.fromkeys((*tokenizer.stop_ids, layout.end_id)))


def check_restored(method: Method, base: OpenParams | None, run: RunDirectory, files: Mapping[str, bytes]) -> None:
    """Make sure that an adapter is resumed as its checkpoint says itself that it was made, and over the same base."""
    where = f"--run_dir {run.path}"
    for name in method.files.keys() & files.keys():
        before, now = json.loads(files[name]), json.loads(method.files[name])
        for key in sorted(before.keys() & now.keys()):
            if before[key] != now[key]:
                values = f"{json.dumps(before[key])} in its checkpoints, not {json.dumps(now[key])}"
                raise UserError(f"{where}: lora.{key} is {values}; give the same value, or another --run_dir")
    if base is not None and BASE_FILE in files:
        check_base(BaseIdentity.from_json(files[BASE_FILE], f"{where}: {BASE_FILE}"), base.identity, where)


@dataclass(frozen=True)
class Start:
    """The parameters that a run begins with, and what its checkpoints need of them."""

    base: OpenParams | None
    """The model, where checkpoints do not hold all of it."""
    open_model: Callable[[], OpenParams]
    """Gives the same, or reads it again."""
    fresh: Callable[[], tuple[TrainState, PyTree]]
    """State and frozen parameters of a run that begins."""
    files: Mapping[str, bytes]
    """Of each checkpoint, by path."""
    hashes: Mapping[str, str]
    """Of its manifest."""
    unsaved_params: PyTree
    """Those that checkpoints do not hold."""
    step: StepChoice | None
    """Checkpoint of the model, as far as it is known."""


def start_of(
    config: ModelRunConfig,
    method: Method,
    program: Program,
    files: Mapping[str, bytes],
    run: RunDirectory,
    command: str,
) -> Start:
    """Open the model on the mesh in use, where checkpoints do not hold all of it.

    Args:
        files: What `model_files` gives.
    """
    unsaved = {path for path in tree.flatten(program.frozen_shapes) if not method.is_saved(path)}
    opened = ModelReference(str(config.model), config.step)
    open_base = functools.partial(
        open_params, opened, config.compute, store=method.store, identify=bool(unsaved), say=run.say
    )
    # Where checkpoints hold all parameters nothing keeps those of the model: a run that begins may use their memory.
    base = open_base() if unsaved else None
    if base is not None and base.identity.step is not None:
        config = at_step_of(base, config, run, command)

    def fresh() -> tuple[TrainState, PyTree]:
        params = (base or open_base()).params
        return program.begin(method.begin(params, jax.random.key(config.seed)))

    hashes: dict[str, str] = {}
    files = {**files, **method.files}
    if base is not None:
        files[BASE_FILE], hashes["base"] = base.identity.to_json(), base.identity.fingerprint
    unsaved_params = {} if base is None else tree.split(base.params, unsaved.__contains__)[0]
    return Start(base, lambda: base or open_base(), fresh, files, hashes, unsaved_params, config.step)
