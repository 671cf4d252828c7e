"""Opening a model to use it: whatever `--model` names becomes a model, its parameters on the mesh, and a tokenizer."""

import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from llama_jax.checkpoints.adapters.adapter import Adapter, BaseIdentity, check_base
from llama_jax.checkpoints.adapters.merged_weights import combined_files, with_tokenizer
from llama_jax.checkpoints.base_loading import base_from_run, base_from_weights
from llama_jax.checkpoints.config import StepChoice, UseConfig
from llama_jax.checkpoints.finding import RunKind, find_format, run_kind
from llama_jax.checkpoints.steps.restoring import find_verified
from llama_jax.checkpoints.weight_reading import base_of, lasting_name, open_adapter, open_weights
from llama_jax.core import placing, sharding, tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.signals import run_first
from llama_jax.core.run_directory import newest_run
from llama_jax.data.instructions.template_dates import with_date
from llama_jax.data.tokenizers import Tokenizer, has_tokenizer, load_tokenizer, tokenizer_from_files
from llama_jax.model import paths
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.model.lora import adapter_axes, stack_adapters, with_adapter
from llama_jax.model.quantized import StorageType


@dataclass(frozen=True)
class ModelReference:
    """Which model, as `--model`, `--step` and `--adapters` say it."""

    path: str
    """A run directory, a directory of Hugging Face, Meta or PEFT, a GGUF or llama2c file, or a name on the hub."""
    step: StepChoice | None = None
    """Checkpoint of a run; None: the newest that verifies."""
    adapters: Sequence[str] = ()
    """LoRA runs or directories of PEFT to put over the model, which must be their base. (An adapter named as the model
    itself is put over the base that it names.)"""


@dataclass(frozen=True)
class OpenParams:
    """A model without its tokenizer."""

    model: LanguageModel
    params: PyTree
    """Scanned layout, in the storage type asked for, on the mesh; with an adapter, or several, below `lora`."""
    files: Mapping[str, bytes]
    """What travels with the weights: see `Weights.files`."""
    source: str
    """Where it came from, for people."""
    run: epath.Path | None
    """The run it was trained in, if any."""
    adapters: tuple[str, ...] = ()
    """Where the adapters came from, in the order of their numbers. With more than one, `adapter_ids` must say which
    each row takes."""
    base: BaseIdentity | None = None
    """See `identity`."""

    @property
    def identity(self) -> BaseIdentity:
        """What an adapter remembers of the base, adapters left out; there if `identify` asked for it."""
        if self.base is None:
            raise ValueError(f"{self.source} was opened without identify")
        return self.base


@dataclass(frozen=True)
class OpenModel(OpenParams):
    """A model ready for use."""

    tokenizer: Tokenizer = field(kw_only=True)


TEXT: Sequence[RunKind] = ("model", "adapter")
"""What text can be written with."""
ANY: Sequence[RunKind] = (*TEXT, "reward")


def find_model(
    path: str | None,
    say: Callable[[str], None],
    adapters: Sequence[str] = (),
    kinds: Collection[RunKind] = ("model",),
) -> str:
    """The path given; else the base that the first adapter names; else the newest run under runs/ that has made what is
    of use; else a run of the smallest configuration, trained now.

    Args:
        kinds: what is of use where no path is given.

    Raises:
        UserError: the adapter names no base, or the run that was to be trained did not finish.
        SavedAfterSignal: a signal came, which that run was told of.
    """
    if path is not None:
        return path
    if adapters:
        first = open_adapter(adapters[0], step=None, say=say)
        base_of(first)
        say(f"no --model given: taking the base that {first.source} names, {first.base_name}")
        return str(first.base_name)
    if (newest := newest_run(fits=lambda run: run_kind(run) in kinds)) is not None:
        passed = newest_run() != newest
        which = f" that has made a {' or '.join(kinds)}" * passed
        say(f"no --model given: taking the newest run{which}, {newest}")
        return str(newest)
    default = "runs/tiny"
    say(f"no --model given and no run under runs/ that serves: training the smallest one first, into {default}")
    command = ["-m", "llama_jax.pretrain", "--config", "tiny/pretrain", "--run_dir", default]
    # Ten times the steps of the config: half a minute, after which it spells words.
    longer = ["--training.steps", "600", "--training.evaluate_every", "300", "--checkpoints.every", "300"]
    if run_first([sys.executable, *command, *longer]):
        raise UserError("--model: none given, and the default could not be trained; see above")
    return default


def load(
    path: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    step: StepChoice | None = None,
    tokenizer: str | None = None,
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
) -> tuple[LanguageModel, PyTree, Tokenizer]:
    """A model, its parameters and its tokenizer, for use from Python.

    Args:
        path: a run directory, a directory of Hugging Face, Meta or PEFT, a GGUF or llama2c file, or a name on the hub.
        dtype: type of weights and activations.
        step: checkpoint of a run; None: the newest that verifies.
        tokenizer: file to take instead of the model's own.
        mesh: where the parameters go; None: all devices, sharded over `fsdp`.
        adapters: LoRA runs or directories of PEFT to put over the model. Of several, `generate` is told by
            `adapter_ids` which one each prompt takes.

    Raises:
        UserError: the path names nothing that can be opened, no tokenizer is known, or an adapter belongs to another
            base.
    """
    reference = ModelReference(path, step, adapters)
    with jax.set_mesh(make_mesh(MeshConfig()) if mesh is None else mesh):
        opened = open_model(reference, ComputeConfig(dtype=dtype), tokenizer=tokenizer, say=print)
    return opened.model, opened.params, opened.tokenizer


def open_named(
    config: UseConfig, say: Callable[[str], None], *, store: StorageType | None = None, writes: bool = True
) -> OpenModel:
    """The model that the settings of a command name, or `find_model` finds; see `open_model`.

    Args:
        writes: whether it is to predict text, as reward models do not.
    """
    path = find_model(config.model, say, config.adapters, TEXT if writes else ANY)
    reference = ModelReference(path, config.step, config.adapters)
    compute = ComputeConfig(dtype=config.model_dtype)
    opened = open_model(reference, compute, tokenizer=config.tokenizer, store=store, say=say)
    if writes and opened.model.config.scalar_head:
        raise UserError(
            f"--model {opened.source}: is a reward model, which scores answers and writes none; evaluate --task "
            "preference measures it"
        )
    return opened


def open_model(
    reference: ModelReference,
    compute: ComputeConfig,
    *,
    tokenizer: str | None = None,
    store: StorageType | None = None,
    say: Callable[[str], None],
) -> OpenModel:
    """Open a model in any format to use it, on the mesh in use; called by all processes alike.

    Args:
        tokenizer: file to take instead of the model's own.
        store: see `open_params`.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: the path names nothing that can be opened, no tokenizer is known, or an adapter belongs to another
            base.
    """
    opened = open_params(reference, compute, store=store, identify=False, say=say)
    known = tokenizer_for(opened.files, opened.model.config, reference.path, given=tokenizer)
    return OpenModel(**vars(opened), tokenizer=known)


def tokenizer_for(
    files: Mapping[str, bytes], config: LlamaConfig, path: str, *, given: str | None, day: str | None = None
) -> Tokenizer:
    """The tokenizer of a model. All processes call this together.

    Args:
        files: what travels with the weights.
        path: of the model, for messages.
        given: file to take instead of the model's own.
        day: date for a chat template that asks for the clock; None: today.

    Raises:
        UserError: there is none, or the model has no row for a token that it gives.
    """
    if given is not None:
        tokenizer = tokenizer_from_files(with_tokenizer(files, load_tokenizer(given).files()), given)
        where = f"--tokenizer {given}"
    elif has_tokenizer(files):
        tokenizer, where = tokenizer_from_files(files, path), path
    else:
        raise UserError(f"--tokenizer: needed, {path} does not carry its own")
    return with_date(tokenizer, day).for_model(config.vocab_size, where)


def open_params(
    reference: ModelReference,
    compute: ComputeConfig,
    *,
    store: StorageType | None = None,
    identify: bool = True,
    say: Callable[[str], None],
) -> OpenParams:
    """The same without a tokenizer. Weights are read, placed and stored one after another, so that no second copy of
    the model is ever there.

    Args:
        store: type in which the base is kept; None: the type of computation.
        identify: take the fingerprints of the base (see `OpenParams.identity`), a pass over it. Done in any case where
            an adapter asks for it.
    """
    path, step = reference.path, reference.step
    place, kind = find_format(path)
    sources = [open_adapter(adapter, step=None, say=say) for adapter in reference.adapters]
    if kind in ("lora", "peft"):
        if sources:
            raise UserError(f"--model {path}: is an adapter itself; name its base as --model, and both as --adapters")
        sources = [open_adapter(path, step=step, say=say)]
        (place, kind, step), path = base_of(sources[0]), str(sources[0].base_name)
    identify = identify or any(source.base is not None for source in sources)
    store = store or compute.dtype
    if kind == "orbax":
        run = epath.Path(place)
        verified = find_verified(run / "checkpoints", ("params", "model"), step=step, say=say)
        if verified is None:
            raise UserError(f"--model {run}: holds no checkpoint")
        model, params, identity = base_from_run(run, verified, compute, store, identify)
        files = {name.removeprefix("model/"): content for name, content in verified.files.items()}
        trained = run if (run / "config.yaml").exists() else None
        opened = OpenParams(model, params, files, f"{run} step {verified.step}", trained, base=identity)
    else:
        weights = open_weights(place, step=step, say=say)
        model, params, identity = base_from_weights(weights, lasting_name(path), compute, store, identify)
        opened = OpenParams(model, params, weights.files, path, None, base=identity)
    return with_adapters(opened, [source.read(opened.model.config) for source in sources]) if sources else opened


def with_adapters(opened: OpenParams, adapters: Sequence[Adapter], *, any_base: bool = False) -> OpenParams:
    """The base with one adapter attached, or with several from which each row of a batch takes one.

    Args:
        any_base: do not ask whether it is their base.

    Raises:
        UserError: an adapter belongs to another base, or of several one replaces what all rows share.
    """
    for adapter in adapters:
        if adapter.base is not None and not any_base:
            check_base(adapter.base, opened.identity, adapter.source)
        if adapter.saved_modules and len(adapters) > 1:
            replaced = " and ".join(adapter.saved_modules)
            raise UserError(f"--adapters: {adapter.source} replaces {replaced}, so it cannot be combined with others")
    first = adapters[0]
    factors = first.factors if len(adapters) == 1 else stack_adapters([adapter.factors for adapter in adapters])
    mesh, model, leaves = jax.sharding.get_mesh(), opened.model, tree.flatten(opened.params)
    if (architecture := first.architecture(model.config)) != model.config:
        model = language_model(architecture, model.compute)
        leaves.pop(paths.HEAD, None)
        leaves[paths.SCORE] = jax.device_put(np.zeros((architecture.width, 1), np.float32), sharding.replicated(mesh))
    for path, saved in first.saved_modules.items():
        leaves[path] = _put(saved.astype(leaves[path].dtype), leaves[path].sharding)
    places = sharding.shardings_of(mesh, factors, adapter_axes(factors, opened.model.axes))
    placed = jax.tree.map(_put, factors, places)
    names = tuple(adapter.source for adapter in adapters)
    return dataclasses.replace(
        opened,
        model=model,
        params=with_adapter(tree.unflatten(leaves), placed),
        files=combined_files(opened.files, first.files) if len(adapters) == 1 else opened.files,
        source=f"{opened.source} with {', '.join(names)}",
        adapters=names,
    )


def _put(leaf: np.ndarray | Array, place: Any) -> Array:
    return placing.placed(leaf, place) if isinstance(leaf, np.ndarray) else jax.device_put(leaf, place)
