"""Where adapters come from: the checkpoints of a run that trained one, and directories of PEFT.

What needs no base (where that is) comes first; the factors are read when the architecture of the base is
known."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from etils import epath

from llama_jax.checkpoints.adapters.adapter import ADAPTER_FILE, ADAPTER_ITEM, Adapter, adapter_config_from_json
from llama_jax.checkpoints.adapters.base_identity import BASE_FILE, BaseIdentity
from llama_jax.checkpoints.adapters.peft import peft_base, read_peft
from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.formats.directories import BUNDLE
from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, read_manifest
from llama_jax.checkpoints.steps.restoring import Verified, find_verified
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
class AdapterRun:
    """A checkpoint of a run that trained an adapter. Made by `open_adapter_run`."""

    run: epath.Path
    verified: Verified
    base: BaseIdentity

    @property
    def source(self) -> str:
        """For people."""
        return f"{self.run} step {self.verified.step}"

    @property
    def base_name(self) -> str | None:
        """Where its base was when it was trained."""
        return self.base.name

    @property
    def base_step(self) -> int | None:
        """The checkpoint of a base that is a run."""
        return self.base.step

    def read(self, config: LlamaConfig) -> Adapter:
        """The adapter, on the mesh in use."""
        leaves = self.verified.manifest.leaves[ADAPTER_ITEM]
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
        target = _placed(tree.unflatten(shapes), config)
        arrays = self.verified.restore({ADAPTER_ITEM: target})[ADAPTER_ITEM]
        where, files = f"{self.source}: {ADAPTER_FILE}", self.verified.files
        saved_modules, factors = without_adapter(arrays)
        return Adapter(
            factors=factors,
            config=adapter_config_from_json(files[ADAPTER_FILE], where),
            saved_modules=tree.flatten(saved_modules),
            source=self.source,
            base=self.base,
            base_name=self.base.name,
            base_step=self.base.step,
            files={name: files[f"model/{name}"] for name in BUNDLE if f"model/{name}" in files},
        )


def _placed(shapes: PyTree, config: LlamaConfig) -> PyTree:
    """The shapes with their places: on the mesh in use, or on one device where there is none."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return sharding.with_shardings(shapes, jax.tree.map(lambda _: alone, shapes))
    axes = language_model(config, ComputeConfig()).axes
    axes = with_adapter(axes, adapter_axes(without_adapter(shapes)[1], axes))
    return sharding.with_shardings(shapes, sharding.shardings_of(mesh, shapes, axes))


@dataclass(frozen=True)
class PeftDirectory:
    """A directory of PEFT."""

    source: str
    base_name: str | None
    base_step: int | None = None

    def read(self, config: LlamaConfig) -> Adapter:
        """The adapter, on the host."""
        return read_peft(self.source, config)


def open_adapter_run(run: epath.Path, step: StepChoice | None, say: Callable[[str], None]) -> AdapterRun:
    """The newest checkpoint of a run whose adapter verifies, or the one asked for.

    Raises:
        UserError: there is no such step, or it does not say what its base is.
        CheckpointDamagedError: none verifies.
    """
    verified = find_verified(run / "checkpoints", (ADAPTER_ITEM, "model"), step=step, say=say)
    if verified is None:
        raise UserError(f"{run}: holds no checkpoint")
    for name in (BASE_FILE, ADAPTER_FILE):
        if name not in verified.files:
            raise UserError(f"{run} step {verified.step}: has no {name}")
    base = BaseIdentity.from_json(verified.files[BASE_FILE], f"{run} step {verified.step}: {BASE_FILE}")
    return AdapterRun(run, verified, base)


def open_peft_directory(path: str) -> PeftDirectory:
    """A directory that `PeftModel.save_pretrained` made."""
    return PeftDirectory(path, peft_base(path))
