"""Where adapters come from: the checkpoints of a run that trained one, and directories of PEFT.

What needs no base (where that is) comes first; the factors are read when the architecture of the base is
known."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from etils import epath

from llama_jax.checkpoints.adapters.adapter import ADAPTER_FILE, ADAPTER_ITEM, Adapter, adapter_config_from_json
from llama_jax.checkpoints.adapters.base_identity import BASE_FILE, BaseIdentity
from llama_jax.checkpoints.adapters.peft import read_peft
from llama_jax.checkpoints.adapters.peft_config import read_peft_config
from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.formats.directories import BUNDLE, local_directory
from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, read_manifest
from llama_jax.checkpoints.steps.restoring import find_verified
from llama_jax.core import sharding, tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.model.lora import adapter_axes, with_adapter, without_adapter


def holds_adapter(run: epath.Path) -> bool:
    """Whether the newest checkpoint of a run whose manifest is whole holds an adapter and not a model."""
    directory = run / "checkpoints"
    for step in reversed(finished_steps(directory)):
        try:
            return ADAPTER_ITEM in read_manifest(directory / str(step)).leaves
        except CheckpointDamagedError:
            continue
    return False


@dataclass(frozen=True)
class AdapterSource:
    """An adapter whose factors have not been read. Made by `open_adapter_run` and `open_peft_directory`."""

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
    axes = language_model(config, ComputeConfig()).axes
    axes = with_adapter(axes, adapter_axes(without_adapter(shapes)[1], axes))
    return sharding.with_shardings(shapes, sharding.shardings_of(mesh, shapes, axes))


def open_adapter_run(run: epath.Path, step: StepChoice | None, say: Callable[[str], None]) -> AdapterSource:
    """The newest checkpoint of a run whose adapter verifies, or the one asked for.

    Raises:
        UserError: there is no such step, or it does not say what its base is.
        CheckpointDamagedError: none verifies.
    """
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


def open_peft_directory(path: str) -> AdapterSource:
    """A directory that `PeftModel.save_pretrained` made."""
    return AdapterSource(path, read_peft_config(local_directory(path)).base_name, partial(read_peft, path))
