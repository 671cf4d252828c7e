"""The model of a path, read tensor by tensor, whatever the format; an adapter and its base as one, merged.

No model is put on devices here: see `opening` for one to be used."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from llama_jax.checkpoints.adapters.adapter import (
    ADAPTER_FILE,
    ADAPTER_ITEM,
    BASE_FILE,
    LARGEST_BASE_FILE,
    PEFT_BASE_FILE,
    Adapter,
    BaseIdentity,
    adapter_config_from_json,
    check_base,
    identity_of,
)
from llama_jax.checkpoints.adapters.merged_weights import merged
from llama_jax.checkpoints.adapters.peft import read_peft
from llama_jax.checkpoints.adapters.peft_config import read_peft_config
from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.finding import Kind, find_format
from llama_jax.checkpoints.formats.directories import BUNDLE, local_directory
from llama_jax.checkpoints.formats.gguf import open_gguf
from llama_jax.checkpoints.formats.hugging_face import open_hugging_face
from llama_jax.checkpoints.formats.llama2c import open_llama2c
from llama_jax.checkpoints.formats.meta import open_meta
from llama_jax.checkpoints.formats.orbax import open_orbax
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.checkpoints.steps.restoring import find_verified
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote
from llama_jax.core.json_files import read_bounded
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.model.lora import adapter_axes, with_adapter, without_adapter

_READERS: Mapping[Kind, Callable[[str, Callable[[str], None]], Weights]] = {
    "hf": lambda path, say: open_hugging_face(path),
    "meta": lambda path, say: open_meta(path),
    "gguf": open_gguf,
    "llama2c": lambda path, say: open_llama2c(path),
}


@dataclass(frozen=True)
class AdapterSource:
    """An adapter whose factors have not been read. Made by `open_adapter`."""

    source: str
    """For people."""
    base_name: str | None
    """Where its base is, as it says itself."""
    read: Callable[[LlamaConfig], Adapter]
    """The adapter, for a base of this architecture: that of a run on the mesh in use, that of PEFT on the host."""
    base: BaseIdentity | None = None
    """The base it was trained on; None where the files do not tell."""

    @property
    def base_step(self) -> int | None:
        """The checkpoint of a base that is a run."""
        return self.base.step if self.base else None


def _placed(shapes: PyTree, config: LlamaConfig) -> PyTree:
    """The shapes with their places: on the mesh in use, or on one device where there is none."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return sharding.with_shardings(shapes, jax.tree.map(lambda _: alone, shapes))
    config = dataclasses.replace(config, scalar_head=config.scalar_head or "score" in shapes)
    axes = language_model(config, ComputeConfig()).axes
    axes = with_adapter(axes, adapter_axes(without_adapter(shapes)[1], axes))
    return sharding.with_shardings(shapes, sharding.shardings_of(mesh, shapes, axes))


def open_adapter(path: str, *, step: StepChoice | None, say: Callable[[str], None]) -> AdapterSource:
    """The adapter of a path: a run that trained one, or a directory of PEFT.

    Args:
        step: checkpoint of a run; None: the newest that verifies.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: there is none, it is broken, or it is a run that does not say what its base is.
        CheckpointDamagedError: no checkpoint of the run verifies.
    """
    place, kind = find_format(path)
    if kind == "lora":
        return _open_adapter_run(epath.Path(place), step, say)
    if kind != "peft":
        raise UserError(f"--adapters {path}: is a model, not an adapter (a run of lora, or a directory of PEFT)")
    if step is not None:
        raise UserError(f"--step {step}: {path} is a single adapter, not a run with checkpoints")
    kept = epath.Path(place) / PEFT_BASE_FILE
    base = BaseIdentity.from_json(read_bounded(kept, LARGEST_BASE_FILE), str(kept)) if kept.exists() else None

    def read(config: LlamaConfig) -> Adapter:
        return dataclasses.replace(read_peft(place, config), base=base)

    return AdapterSource(place, read_peft_config(local_directory(place)).base_name, read, base)


def _open_adapter_run(run: epath.Path, step: StepChoice | None, say: Callable[[str], None]) -> AdapterSource:
    verified = find_verified(run / "checkpoints", (ADAPTER_ITEM, "model"), step=step, say=say)
    if verified is None:
        raise UserError(f"{run}: holds no checkpoint")
    source, files = f"{run} step {verified.step}", verified.files
    for name in (BASE_FILE, ADAPTER_FILE):
        if name not in files:
            raise UserError(f"{source}: has no {name}")
    base = BaseIdentity.from_json(files[BASE_FILE], f"{source}: {BASE_FILE}")

    def read(config: LlamaConfig) -> Adapter:
        leaves = verified.manifest.leaves[ADAPTER_ITEM]
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
        target = _placed(tree.unflatten(shapes), config)
        saved_modules, factors = without_adapter(verified.restore({ADAPTER_ITEM: target})[ADAPTER_ITEM])
        return Adapter(
            factors=factors,
            config=adapter_config_from_json(files[ADAPTER_FILE], f"{source}: {ADAPTER_FILE}"),
            saved_modules=tree.flatten(saved_modules),
            source=source,
            base=base,
            base_name=base.name,
            base_step=base.step,
            files={name: files[f"model/{name}"] for name in BUNDLE if f"model/{name}" in files},
        )

    return AdapterSource(source, base.name, read, base)


def base_of(adapter: AdapterSource) -> tuple[str, Kind, int | None]:
    """Where the base of an adapter is, as it says itself, in which format, and at which checkpoint if it is a run.

    Raises:
        UserError: it does not say, or nothing is there anymore, or not that checkpoint.
    """
    advice = f"give its base as --model and {adapter.source} as --adapters"
    if adapter.base_name is None:
        raise UserError(f"--model {adapter.source}: is an adapter that does not name its base; {advice}")
    try:
        place, kind = find_format(adapter.base_name)
    except UserError as error:
        reason = str(error).removeprefix("--model ")
        raise UserError(f"--model {adapter.source}: is an adapter over {reason}; {advice}") from None
    if kind in ("lora", "peft"):
        raise UserError(f"--model {adapter.source}: is an adapter over another, {adapter.base_name}; merge that first")
    if kind != "orbax" or adapter.base_step is None:
        return place, kind, None
    steps = finished_steps(epath.Path(place) / "checkpoints")
    if adapter.base_step not in steps:
        raise UserError(
            f"--model {adapter.source}: is an adapter over step {adapter.base_step} of {place}, which is not there "
            f"anymore (there are {', '.join(map(str, steps)) or 'none'}): that run removed it when it went on, or was "
            f"made anew; an export or a copy of that step serves as well: {advice}"
        )
    return place, kind, adapter.base_step


def open_weights(
    path: str, *, step: StepChoice | None, say: Callable[[str], None], adapter: str | None = None
) -> Weights:
    """The model of a path, tensor by tensor; an adapter and its base as one, merged.

    Args:
        step: checkpoint of a run; None: the newest that verifies.
        say: told of checkpoints that do not verify.
        adapter: run of lora, or directory of PEFT, to merge into the model.

    Raises:
        UserError: nothing is there that can be read, it is broken, or the adapter belongs to another base.
    """
    place, kind = find_format(path)
    if kind in ("lora", "peft"):
        if adapter is not None:
            raise UserError(f"{path}: is an adapter itself; name the base of both, and one adapter")
        own = open_adapter(path, step=step, say=say)
        (place, kind, step), path = base_of(own), str(own.base_name)
    else:
        own = None if adapter is None else open_adapter(adapter, step=None, say=say)
    if kind == "orbax":
        weights = open_orbax(epath.Path(place), step=step, say=say)
    elif step is not None:
        raise UserError(f"--step {step}: {place} is a single model, not a run with checkpoints")
    else:
        weights = _READERS[kind](place, say)
    if own is None:
        return weights
    read, number = own.read(weights.config), step if isinstance(step, int) else None
    if read.base is not None:
        check_base(read.base, identity_of(weights, lasting_name(path), number), read.source)
    return merged(weights, dataclasses.replace(read, base_name=lasting_name(path), base_step=number))


def lasting_name(name: str) -> str:
    """What `--model` was given, as it still holds in another working directory."""
    return str(Path(name).resolve()) if not is_remote(name) and Path(name).exists() else name
