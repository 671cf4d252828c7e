"""A base on the mesh: its weights read, placed and turned into the type they are kept in, one after another.

So the model is never there twice: beside what is already stored there is one parameter of a run, or one tensor of
another format."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from llama_jax.checkpoints.adapters.adapter import BaseIdentity, Fingerprints, SourceFingerprints, as_stored
from llama_jax.checkpoints.formats.orbax import checked_config
from llama_jax.checkpoints.formats.weights import WeightName, Weights, is_padded, weight_names, without_padding
from llama_jax.checkpoints.steps.manifest import LeafRecord
from llama_jax.checkpoints.steps.restoring import Verified
from llama_jax.core import placing, sharding, tree
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.files import is_remote
from llama_jax.model.config import ComputeConfig
from llama_jax.model.llama import LanguageModel, language_model
from llama_jax.model.quantized import StorageType, store_as, stored_axes


class StoredBase:
    """Takes parameters one by one, keeps them in the storage type on the mesh in use, and knows their fingerprints."""

    def __init__(self, model: LanguageModel, store: StorageType) -> None:
        self._mesh = jax.sharding.get_mesh()
        self._store: StorageType = store
        self._axes = tree.flatten(model.axes)
        self._leaves: dict[str, Array] = {}
        self._unchanged: set[str] = set()
        self._programs: dict[Any, Any] = {}

    def place(self, path: str, shape: tuple[int, ...]) -> Any:
        """Where a parameter goes as it was read, given its shape (or that of one layer of it)."""
        shapes = tree.unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32)})
        axes = tree.unflatten({path: self._axes[path]})
        return tree.flatten(sharding.shardings_of(self._mesh, shapes, axes))[path]

    def stored(self, path: str, leaf: Array) -> dict[str, Array]:
        """A parameter in the storage type: one array under its own path, or those of a quantised kernel."""
        part = tree.unflatten({path: leaf})
        shapes = jax.eval_shape(partial(store_as, storage=self._store), part)
        if tree.flatten(shapes).keys() == {path} and tree.flatten(shapes)[path].dtype == leaf.dtype:
            self._unchanged.add(path)
            return {path: leaf}
        kind = (path, leaf.shape, leaf.dtype)
        if kind not in self._programs:
            axes = stored_axes(tree.unflatten({path: self._axes[path]}), shapes)
            places = sharding.shardings_of(self._mesh, shapes, axes)
            self._programs[kind] = jax.jit(partial(store_as, storage=self._store), out_shardings=places)
        return tree.flatten(self._programs[kind](part))

    def keep(self, path: str, leaf: Array) -> None:
        """Add a whole parameter."""
        self._leaves |= self.stored(path, leaf)

    def keep_layers(self, layers: list[dict[str, Array]]) -> None:
        """Add a parameter of which `stored` was asked layer by layer."""
        places = {path: leaf.sharding for path, leaf in layers[0].items()}
        self._leaves |= jax.jit(_concatenated, out_shardings=places)(layers)

    @property
    def params(self) -> PyTree:
        """What was kept so far."""
        return tree.unflatten(self._leaves)

    def fingerprints(self, source: Fingerprints) -> dict[str, LeafRecord]:
        """Shape, type and fingerprint of what is kept, given those of the source for what is kept as it was read."""
        changed = {path: leaf for path, leaf in self._leaves.items() if path not in self._unchanged}
        records = {path: source[path] for path in self._unchanged}
        for path, leaf in changed.items():  # one by one, for what a compiler makes room for
            words = jax.device_get(tree.fingerprints(leaf))
            records[path] = LeafRecord(leaf.shape, str(leaf.dtype), tuple(map(int, words)))
        return records


def _concatenated(layers: list[dict[str, Array]]) -> dict[str, Array]:
    def joined(*parts: Array) -> Array:
        if parts[0].dtype != jnp.bfloat16:
            return jnp.concatenate(parts)
        # As plain bits: XLA for CPU would concatenate in float32, twice the bytes.
        bits = jnp.concatenate([jax.lax.bitcast_convert_type(part, jnp.uint16) for part in parts])
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)

    return jax.tree.map(joined, *layers)


def base_from_run(
    run: epath.Path, verified: Verified, compute: ComputeConfig, store: StorageType, identify: bool
) -> tuple[LanguageModel, PyTree, BaseIdentity | None]:
    """The model of a checkpoint; each process reads what its devices hold.

    Raises:
        UserError: its arrays are not those of its configuration.
        CheckpointDamagedError: an array is not the one that was saved.
    """
    model = language_model(checked_config(f"{run} step {verified.step}", verified), compute)
    records = verified.manifest.leaves["params"]
    base, source = StoredBase(model, store), dict(records)

    def read(path: str, leaf: LeafRecord) -> jax.Array:
        target = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype), sharding=base.place(path, leaf.shape))
        found = verified.restore_leaf("params", path, target)
        if is_padded(path, model.config):
            cleared = partial(without_padding, path=path, config=model.config)
            found = jax.jit(cleared, out_shardings=found.sharding)(found)
            words = jax.device_get(tree.fingerprints(found))
            source[path] = LeafRecord(leaf.shape, leaf.dtype, tuple(map(int, words)))
        return found

    for path, leaf in records.items():
        base.keep(path, read(path, leaf))  # which has no name here, so that it is gone before the next is read
    if not identify:
        return model, base.params, None
    name = str(run) if is_remote(run) else str(run.resolve())
    stored = base.fingerprints(source)
    return model, base.params, BaseIdentity(name, verified.step, model.config, source, stored, with_padding=records)


def base_from_weights(
    weights: Weights, name: str, compute: ComputeConfig, store: StorageType, identify: bool
) -> tuple[LanguageModel, PyTree, BaseIdentity | None]:
    """The model of another format; every process reads all of it.

    Args:
        name: where it is, as `--model` takes it.
    """
    model = language_model(weights.config, compute)
    base = StoredBase(model, store)
    fingerprints = SourceFingerprints(weights.config) if identify else None
    for row in weight_names(weights.config):
        if not row.per_layer:
            base.keep(row.ours, _read(weights, row, None, base, fingerprints))
            continue
        layers = range(weights.config.num_layers)
        base.keep_layers([base.stored(row.ours, _read(weights, row, layer, base, fingerprints)) for layer in layers])
    if fingerprints is None:
        return model, base.params, None
    source = fingerprints.records()
    return model, base.params, BaseIdentity(name, None, model.config, source, base.fingerprints(source))


def _read(
    weights: Weights, row: WeightName, layer: int | None, base: StoredBase, fingerprints: SourceFingerprints | None
) -> Array:
    """One tensor on the mesh as it was read; that of a layer has an axis for it."""
    tensor = as_stored(weights.read(row, layer), row, weights.config)
    tensor = tensor if layer is None else tensor[None]
    leaf = placing.placed(tensor, base.place(row.ours, tensor.shape))
    if fingerprints is not None:
        fingerprints.add(row, layer, leaf)
    return leaf
