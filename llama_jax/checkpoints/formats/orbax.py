"""Our own format as a format of weights: a directory whose `checkpoints/` holds steps as a run saves them.

Written and read block by block, so that models larger than the memory can be converted; opening a model to use it goes
through `restoring` instead."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.formats.weights import WeightName, Weights, stored_shape, weight_names
from llama_jax.checkpoints.steps.folders import pending_marker
from llama_jax.checkpoints.steps.manifest import (
    CheckpointDamagedError,
    LeafRecord,
    Manifest,
    describe,
    sync,
    write_step,
)
from llama_jax.checkpoints.steps.restoring import Verified, check_fit, find_verified
from llama_jax.core.errors import UserError
from llama_jax.core.files import absolute
from llama_jax.core.json_files import json_object
from llama_jax.core.tree import part_fingerprint, unflatten
from llama_jax.model import paths
from llama_jax.model.config import LlamaConfig

_STEP = 0
"""Number of the only step of a converted model."""
_CONFIG = "model/config.json"
_TYPES = ("float32", "bfloat16", "float16")
_CHUNK_BYTES = 1 << 24
"""Size of the pieces that are compressed each by itself, so the least that a reader decodes."""
_BLOCK_CHUNKS = 4
"""Chunks that are in memory at once, compressed by different threads and written together."""
_NODE_BYTES = 100_000_000
"""Orbax's own limit for cached index nodes."""


def write_orbax(target: epath.Path, weights: Weights, *, dtype: np.dtype | None) -> None:
    """Write a model as step 0 of `target/checkpoints`, from where it opens like a run. Beside one tensor of `weights`
    there are only a few blocks of 64 MiB in memory.

    Args:
        target: directory; made if missing. What an interruption leaves in it, `steps.clean_up` recognises.
        weights: the model and the files that travel with it.
        dtype: type of the stored parameters; None: as they come.

    Raises:
        UserError: a value is out of the range of `dtype`, or `weights` refuses to give a tensor.
    """
    directory = absolute(target) / "checkpoints"
    directory.mkdir(parents=True, exist_ok=True)
    pending_marker(directory, _STEP).touch()
    sync(directory)
    leaves = {
        name.ours: _Leaf(weights, name, _stored_type(weights, name, dtype)) for name in weight_names(weights.config)
    }
    writer = _BlockWriter()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(
        "params",
        ocp.args.PyTreeSave,
        ocp.PyTreeCheckpointHandler(
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (_Leaf, writer), (jax.Array, ocp.type_handlers.ArrayHandler())
            )
        ),
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(handler_registry=registry)) as saver:
        arguments = ocp.args.Composite(params=ocp.args.PyTreeSave(unflatten(leaves)))
        saver.save(directory / str(_STEP), args=arguments)
    config = json.dumps(weights.config.to_json(), indent=2).encode()
    files = {_CONFIG: config} | {f"model/{name}": content for name, content in weights.files.items()}
    hashes = {"config": hashlib.sha256(config).hexdigest()}
    versions = {"jax": jax.__version__, "orbax": ocp.__version__}
    write_step(directory / str(_STEP), Manifest(_STEP, {"params": writer.records}, hashes, versions, {}), files, 0, 1)
    pending_marker(directory, _STEP).unlink()
    sync(directory)


def _stored_type(weights: Weights, name: WeightName, dtype: np.dtype | None) -> np.dtype:
    own = weights.dtype(name) if dtype is None else dtype
    return np.dtype(np.float32) if own.itemsize == 8 else own  # JAX has no float64 by default


@dataclass(frozen=True)
class _Leaf:
    """An array of our tree that is never in memory as a whole."""

    weights: Weights
    name: WeightName
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return stored_shape(self.weights.config, self.name)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Consecutive rows of one layer, which are consecutive in the flattened array, too."""
        layer = (1,) if self.name.per_layer else ()
        rows, *row = self.shape[len(layer) :]
        return (*layer, min(rows, max(1, _CHUNK_BYTES // (prod(row) * self.dtype.itemsize))), *row)

    def blocks(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Index of the first element, and the block, for all blocks in order."""
        for layer in range(self.shape[0]) if self.name.per_layer else (None,):
            tensor = self.weights.read(self.name, layer)
            first = () if layer is None else (layer,)
            rows, *row = self.shape[len(first) :]
            height = self.chunk_shape[len(first)] * _BLOCK_CHUNKS
            for start in range(0, rows, height):
                block = np.zeros((min(height, rows - start), *row), self.dtype)
                part = tensor[start : start + height]
                with np.errstate(over="ignore"):
                    block[tuple(map(slice, part.shape))] = part
                if not np.isfinite(block).all():
                    where = self.name.in_layer(layer)
                    raise UserError(f"{where}: has values too large for {self.dtype}; bfloat16 or float32 holds them")
                yield (*first, start, *(0 for _ in row)), block[None] if first else block


class _BlockWriter(ocp.type_handlers.NumpyHandler):
    """Teaches orbax to write each `_Leaf` block by block, one after another, in the same files as any array."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, LeafRecord] = {}
        """Of each leaf that is written, by path."""

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Future]:
        """See orbax's `TypeHandler`."""
        return [CommitFutureAwaitingContractedSignals(self._write(values, infos), name="blocks")]

    async def _write(self, leaves: Sequence[_Leaf], infos: Sequence[ocp.type_handlers.ParamInfo]) -> None:
        for leaf, info in zip(leaves, infos, strict=True):
            await info.await_path_creation()
            # Orbax makes a chunk of what one process holds, so it is told that this is so little.
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=leaf.shape,
                local_shape=leaf.chunk_shape,
                dtype=leaf.dtype,
                process_index=0,
            )
            array = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
            words = np.zeros(2, np.uint32)
            for first, block in leaf.blocks():
                words += part_fingerprint(block, int(np.ravel_multi_index(first, leaf.shape)))
                place = tuple(slice(start, start + size) for start, size in zip(first, block.shape, strict=True))
                await array[place].write(block, can_reference_source_data_indefinitely=True)
            fingerprint = tuple(int(word) for word in words)
            self.records[leaf.name.ours] = LeafRecord(leaf.shape, str(leaf.dtype), fingerprint)


def open_orbax(directory: epath.Path, *, step: StepChoice | None = None, say: Callable[[str], None]) -> Weights:
    """The model of a run, or one that `write_orbax` wrote, tensor by tensor.

    All files are compared with their SHA-256 first, which reads them once. The fingerprints of the arrays are not
    compared, as they need the whole array.

    Args:
        directory: has the folder `checkpoints`.
        step: checkpoint to read; None: the newest that verifies.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: there is no checkpoint or no such step, or its arrays are not those of its configuration.
        CheckpointDamagedError: none verifies.
    """
    verified = find_verified(directory / "checkpoints", ("params", "model"), step=step, say=say)
    if verified is None:
        raise UserError(f"{directory}: holds no checkpoint")
    source = f"{directory} step {verified.step}"
    config, leaves = checked_config(source, verified), verified.manifest.leaves["params"]
    for path, leaf in leaves.items():
        if leaf.dtype not in _TYPES:
            raise UserError(f"{source}: params/{path} has type {leaf.dtype}; {' or '.join(_TYPES)} is expected")
    files = {name.removeprefix("model/"): content for name, content in verified.files.items() if name != _CONFIG}
    opened = lru_cache(maxsize=1)(partial(_open_array, verified.directory / str(verified.step) / "params"))
    return OrbaxWeights(source, config, files, leaves, opened)


def checked_config(source: str, verified: Verified) -> LlamaConfig:
    """The architecture that a checkpoint's plain files tell.

    Raises:
        UserError: there is none, it does not describe a model, or the arrays are not those of such a model.
    """
    if _CONFIG not in verified.files:
        raise UserError(f"{source}: has no {_CONFIG}")
    values = json_object(verified.files[_CONFIG], f"{source}: {_CONFIG}")
    try:
        config = LlamaConfig.from_json(values)
    except TypeError:
        raise UserError(f"{source}: {_CONFIG}: has a value of a wrong type") from None
    leaves = verified.manifest.leaves["params"]
    wanted = {
        name.ours: describe(stored_shape(config, name), leaves[name.ours].dtype if name.ours in leaves else "float32")
        for name in weight_names(config)
    }
    check_fit(verified.manifest, {"params": wanted})
    return config


@dataclass(frozen=True)
class OrbaxWeights:
    """`Weights` over a checkpoint. Made by `open_orbax`, which checks it."""

    source: str
    config: LlamaConfig
    files: Mapping[str, bytes]
    leaves: Mapping[str, LeafRecord]
    open_array: Callable[[str, LeafRecord], Any]
    """The tensorstore array of a leaf."""

    def dtype(self, name: WeightName) -> np.dtype:
        return np.dtype(self.leaves[name.ours].dtype)

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        """Quickest when all layers of a parameter are read before the next parameter."""
        array = self.open_array(name.ours, self.leaves[name.ours])
        within = () if layer is None else (layer,)
        tensor = array[(*within, *map(slice, name.shape(self.config)))].read().result()
        if not np.isfinite(tensor).all():
            count = int((~np.isfinite(tensor)).sum())
            raise UserError(f"{self.source}: {name.in_layer(layer)} has {count} non-finite values")
        return tensor


def _open_array(params: epath.Path, path: str, record: LeafRecord) -> Any:
    info = ocp.type_handlers.ParamInfo(name=path.replace("/", "."), parent_dir=params, ts_context=ts.Context())
    spec = ts.Spec(ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True))

    def opened(cache_bytes: int) -> Any:
        caches = {"cache_pool": cache_bytes, "cache_pool#ocdbt": _NODE_BYTES}
        context = ts.Context({name: {"total_bytes_limit": limit} for name, limit in caches.items()})
        return ts.open(spec, open=True, context=context).result()

    array = opened(0)
    if (array.shape, str(array.dtype.numpy_dtype)) != (record.shape, record.dtype):
        found = describe(array.shape, str(array.dtype.numpy_dtype))
        raise CheckpointDamagedError(f"params/{path}: is {found}, not {describe(record.shape, record.dtype)}")
    if paths.in_layers(path) and array.chunk_layout.read_chunk.shape[0] > 1:
        # A run stores all layers in one piece, which is then decoded once and not once a layer.
        return opened(2 * array.domain.size * array.dtype.numpy_dtype.itemsize)
    return array
