"""Adapters as Hugging Face PEFT stores them: a directory with adapter_config.json and adapter_model.safetensors.

PEFT multiplies by A [rank, in] and B [out, rank], layer by layer; our factors are [layers, in, rank] and
[layers, rank, out]. The rotary convention is transformers', which is ours."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from llama_jax.checkpoints.adapters.adapter import Adapter, linears
from llama_jax.checkpoints.adapters.peft_config import (
    PEFT_CONFIG,
    PREFIX,
    SAVED_NAMES,
    TASKS,
    WAY_OUT,
    PeftConfig,
    read_peft_config,
)
from llama_jax.checkpoints.formats.directories import (
    BUNDLE,
    has_member,
    local_directory,
    member,
    read_bundle,
    write_bundle,
)
from llama_jax.checkpoints.formats.hugging_face import transformers_files
from llama_jax.checkpoints.formats.safetensors_files import open_safetensors, same_bits, write_safetensors
from llama_jax.checkpoints.formats.torch_files import TorchFile
from llama_jax.checkpoints.formats.weights import WEIGHTS, is_floating, padded
from llama_jax.core import tree
from llama_jax.core.errors import UserError, nearest
from llama_jax.core.files import write_whole
from llama_jax.model import paths
from llama_jax.model.config import AdapterConfig, LlamaConfig

_SAFETENSORS, _PYTORCH = "adapter_model.safetensors", "adapter_model.bin"
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"

Read = Callable[[str], np.ndarray]
Tensors = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def read_peft(path: epath.PathLike, config: LlamaConfig) -> Adapter:
    """The adapter of a directory, for a base of this architecture.

    Ranks that differ from layer to layer are padded with zeros to the largest; a layer that is not adapted has factors,
    scale (and magnitude) of zero.

    Raises:
        UserError: a file is missing, broken, or may not be opened; a tensor is missing, not known, not finite, or has
            another shape than base and configuration ask for; or it is another kind of adapter.
    """
    directory = local_directory(path)
    peft = read_peft_config(directory)
    file = _open_file(directory)
    left = set(file.tensors)
    leaves: dict[str, Any] = {}
    for inner, name, sizes in linears(config):
        layers = _layers_of(peft, file.tensors, left, name.hugging_face, sizes, config.num_layers)
        if layers:
            stacked = _stacked(peft, _reader(file), layers, sizes, config.num_layers)
            leaves |= {paths.of_layers(f"{inner}/{part}"): array for part, array in stacked.items()}
    saved = _saved_modules(file.path, peft, file.tensors, left, _reader(file), config)
    _refuse_others(file.path, left)
    if not leaves:
        known = ", ".join(paths.name_of(inner) for inner, _, _ in linears(config))
        raise UserError(f"{peft.where}: does not adapt any module of this base, which has {known}")
    modules = sorted({paths.name_of(paths.module_of(path)) for path in leaves})
    adapter_config = AdapterConfig(
        rank=max(leaf.shape[-1] for path, leaf in leaves.items() if paths.name_of(path) == "a"),
        alpha=peft.alpha,
        dropout=peft.dropout,
        target_modules=tuple(modules),
        rank_stabilized=peft.rank_stabilized,
        dora=peft.dora,
        modules_to_save=tuple(key for key, place in paths.SAVED_MODULES.items() if place in saved),  # pyright: ignore[reportArgumentType]
    )
    files = read_bundle(directory)
    return Adapter(tree.unflatten(leaves), adapter_config, saved, str(path), base_name=peft.base_name, files=files)


def _refuse_others(path: Path, left: set[str]) -> None:
    """Tensors that nobody asked for; says what they belong to where PEFT can do more than is done here."""
    for row in WEIGHTS:
        module = row.hugging_face.removesuffix(".weight")
        own = {name for name in left if name.startswith(f"{PREFIX}{module}.")}
        parts = sorted(own - {PREFIX + row.hugging_face})
        if row.ours in SAVED_NAMES and parts:
            raise UserError(f"{path}: has tensor {parts[0]} of a LoRA on {module}, which is not supported; {WAY_OUT}")
    if left:
        some = ", ".join(sorted(left)[:3])
        raise UserError(f"{path}: has {len(left)} tensors that do not fit this base: {some}")


def _open_file(directory: Path) -> Any:
    for name, opener in ((_SAFETENSORS, open_safetensors), (_PYTORCH, TorchFile)):
        if has_member(directory, name):
            return opener(member(directory, name))
    raise UserError(f"{directory}: has neither {_SAFETENSORS} nor {_PYTORCH}")


def _reader(file: Any) -> Read:
    """Reads a tensor as finite float32."""

    def read(name: str) -> np.ndarray:
        _, dtype = file.tensors[name]
        if not is_floating(dtype):
            raise UserError(f"{file.path}: tensor {name} has type {dtype}; float32, float16 or bfloat16 is expected")
        with np.errstate(over="ignore"):
            array = file.read(name).astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{file.path}: tensor {name} has {int((~np.isfinite(array)).sum())} non-finite values")
        return array

    return read


def _layers_of(
    peft: PeftConfig, tensors: Tensors, left: set[str], theirs: str, sizes: tuple[int, int], num_layers: int
) -> dict[int, str]:
    """The layers in which a Linear is adapted, with the name its tensors begin with; checks names and shapes.

    Args:
        left: names that nobody asked for yet.
        theirs: transformers' name of the weight, `{}` for the layer.
    """
    found: dict[int, str] = {}
    for layer in range(num_layers):
        module = theirs.format(layer).removesuffix(".weight")
        start = PREFIX + module
        parts = [start + _A, start + _B, *([start + _MAGNITUDE] if peft.dora else [])]
        wanted = peft.targeted(module, layer)
        if wanted is False or (wanted is None and not any(part in tensors for part in parts)):
            continue
        for part in parts:
            if part not in tensors:
                raise UserError(f"{peft.where}: asks for tensor {part}, which is not there{nearest(part, left)}")
            left.discard(part)
        _check_shapes(peft, tensors, module, sizes)
        found[layer] = start
    return found


def _check_shapes(peft: PeftConfig, tensors: Tensors, module: str, sizes: tuple[int, int]) -> None:
    start, (inputs, outputs) = PREFIX + module, sizes
    shape = tensors[start + _A][0]
    if len(shape) != 2 or shape[1] != inputs or not 1 <= shape[0] <= inputs + outputs:
        raise UserError(f"{peft.where}: tensor {start + _A} has shape {list(shape)}, [rank, {inputs}] is expected")
    rank, announced = shape[0], peft.rank_of(module)
    if announced not in (None, rank):
        raise UserError(f"{peft.where}: tensor {start + _A} has rank {rank}, the configuration says {announced}")
    expected = {start + _B: (outputs, rank)} | ({start + _MAGNITUDE: (outputs,)} if peft.dora else {})
    for name, wanted in expected.items():
        if tensors[name][0] != wanted:
            raise UserError(
                f"{peft.where}: tensor {name} has shape {list(tensors[name][0])}, {list(wanted)} is expected"
            )


def _stacked(
    peft: PeftConfig, read: Read, layers: Mapping[int, str], sizes: tuple[int, int], num_layers: int
) -> dict[str, np.ndarray]:
    inputs, outputs = sizes
    read_a = {layer: read(start + _A) for layer, start in layers.items()}
    rank = max(a.shape[0] for a in read_a.values())
    stacked = {
        "a": np.zeros((num_layers, inputs, rank), np.float32),
        "b": np.zeros((num_layers, rank, outputs), np.float32),
        "scale": np.zeros(num_layers, np.float32),
    }
    if peft.dora:
        stacked["magnitude"] = np.zeros((num_layers, outputs), np.float32)
    for layer, start in layers.items():
        own = read_a[layer].shape[0]
        stacked["a"][layer, :, :own] = read_a[layer].T
        stacked["b"][layer, :own] = read(start + _B).T
        alpha = peft.alpha_of(start.removeprefix(PREFIX))
        stacked["scale"][layer] = alpha / (own**0.5 if peft.rank_stabilized else own)
        if peft.dora:
            stacked["magnitude"][layer] = read(start + _MAGNITUDE)
    return stacked


def _saved_modules(
    path: Path, peft: PeftConfig, tensors: Tensors, left: set[str], read: Read, config: LlamaConfig
) -> dict[str, np.ndarray]:
    """Matrices that were trained whole, or stored because they were, in our layout."""
    found: dict[str, np.ndarray] = {}
    for row in WEIGHTS:
        if row.ours not in SAVED_NAMES or (row.ours == paths.SCORE and not peft.scores):
            continue
        theirs = PREFIX + row.hugging_face
        if theirs not in tensors:
            if SAVED_NAMES[row.ours] in peft.saved_modules:
                raise UserError(f"{path}: lacks tensor {theirs}, which modules_to_save asks for")
            continue
        left.discard(theirs)
        _check_saved(path, theirs, tensors[theirs][0], row.shape(config)[:: -1 if row.transposed else 1])
        array = read(theirs)
        found[row.ours] = padded(array.T if row.transposed else array, row, config)
    if peft.scores != (config.scalar_head or paths.SCORE in found):
        kinds = ("language model", "classifier") if config.scalar_head else ("classifier", "language model")
        raise UserError(f"{peft.where}: task_type makes it the adapter of a {kinds[0]}, and the base is a {kinds[1]}")
    if peft.scores or not config.tie_embeddings or not found:
        return found
    table, head = found.get(paths.TABLE), found.pop(paths.HEAD, None)
    if table is None or (head is not None and not same_bits(table, head.T)):
        raise UserError(f"{path}: trains the head apart from the embedding, which are one matrix in this base")
    if head is None and SAVED_NAMES[paths.TABLE] in peft.saved_modules and not peft.tied:
        raise UserError(f"{path}: trains the embedding apart from the head, which are one matrix in this base")
    return found


def _check_saved(path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """The shape of a whole matrix, [V, D]. PEFT also saves those of a base whose vocabulary was resized in memory."""
    if expected[0] == 1 and shape[1:] == expected[1:] and shape != expected:
        raise UserError(f"{path}: tensor {name} gives {shape[0]} labels; only a scalar head, one label, is read")
    if shape[1:] == expected[1:] and shape != expected:
        raise UserError(
            f"{path}: tensor {name} has {shape[0]} rows, the base {expected[0]}; the adapter belongs to a base with a "
            f"resized vocabulary: make that (in transformers resize_token_embeddings({shape[0]}) and save_pretrained) "
            "and give it as --model"
        )
    if shape != expected:
        raise UserError(f"{path}: tensor {name} has shape {list(shape)}, the base asks for {list(expected)}")


def write_peft(target: epath.PathLike, adapter: Adapter, config: LlamaConfig) -> None:
    """Write an adapter for `PeftModel.from_pretrained`, over a `LlamaForSequenceClassification` with one label where it
    has a scalar head. Ranks are written as they are used: columns of A and rows of B
    that are both zero, as padding is, are left out.

    Args:
        target: an existing local directory.
        adapter: of one adapter, no axis of adapters.
        config: architecture of base and adapter together.

    Raises:
        UserError: the target is in object storage.
    """
    directory = local_directory(target)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    modules: defaultdict[str, set[int]] = defaultdict(set)
    for inner, name, _ in linears(config):
        group, linear = inner.split("/")
        factors = adapter.factors["layers"].get(group, {}).get(linear)
        if factors is None:
            continue
        parts = {part: np.asarray(array, np.float32) for part, array in factors.items()}
        for layer in range(config.num_layers):
            if parts["scale"][layer] == 0:
                continue
            module = name.hugging_face.format(layer).removesuffix(".weight")
            modules[linear].add(layer)
            a, b = parts["a"][layer], parts["b"][layer]
            used = np.flatnonzero((a != 0).any(axis=0) | (b != 0).any(axis=1))
            rank = int(used[-1]) + 1 if used.size else 1
            ranks[module] = rank
            alphas[module] = _alpha(float(parts["scale"][layer]), rank, adapter.config)
            tensors[PREFIX + module + _A] = np.ascontiguousarray(a[:, :rank].T)
            tensors[PREFIX + module + _B] = np.ascontiguousarray(b[:rank].T)
            if "magnitude" in parts:
                tensors[PREFIX + module + _MAGNITUDE] = parts["magnitude"][layer]
    tensors |= _saved_tensors(adapter, config)
    shapes = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    write_safetensors(directory / _SAFETENSORS, shapes, lambda name: tensors[name])
    kept = {name: content for name, content in adapter.files.items() if name in BUNDLE}
    write_bundle(directory, transformers_files(kept, adapter.source))
    write_whole(epath.Path(directory / PEFT_CONFIG), _config_bytes(adapter, config, modules, ranks, alphas))


def _alpha(scale: float, rank: int, config: AdapterConfig) -> float:
    """The alpha that gives this scale, without the rounding of float32 where it is the configuration's."""
    divisor = rank**0.5 if config.rank_stabilized else rank
    whole = np.float32(config.alpha / divisor) == np.float32(scale)
    alpha = config.alpha if whole else scale * divisor
    rounded = round(alpha, 3)
    return rounded if np.float32(rounded / divisor) == np.float32(scale) else alpha


def _saved_tensors(adapter: Adapter, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Saved matrices as PEFT names them; of tied ones both, as PEFT keeps two copies."""
    found: dict[str, np.ndarray] = {}
    for row in WEIGHTS:
        if row.ours in adapter.saved_modules:
            array = np.asarray(adapter.saved_modules[row.ours], np.float32)[tuple(map(slice, row.shape(config)))]
            found[PREFIX + row.hugging_face] = np.ascontiguousarray(array.T if row.transposed else array)
            if row.ours == paths.TABLE and config.table_is_head:
                found[f"{PREFIX}lm_head.weight"] = found[PREFIX + row.hugging_face]
    return found


def _config_bytes(
    adapter: Adapter,
    config: LlamaConfig,
    modules: Mapping[str, set[int]],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> bytes:
    everywhere = all(len(layers) == config.num_layers for layers in modules.values())
    rank, alpha = (max(set(all_of.values()), key=list(all_of.values()).count) for all_of in (ranks, alphas))
    saved = [name for path, name in SAVED_NAMES.items() if path in adapter.saved_modules]
    if saved and config.table_is_head:
        saved = [SAVED_NAMES[paths.TABLE], SAVED_NAMES[paths.HEAD]]
    fields = {
        "alpha_pattern": {module: _as_number(own) for module, own in alphas.items() if own != alpha},
        "auto_mapping": None,
        "base_model_name_or_path": adapter.base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": _as_number(alpha),
        "lora_dropout": adapter.config.dropout,
        "modules_to_save": saved or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "revision": None,
        "target_modules": sorted(modules) if everywhere else sorted(ranks),
        "task_type": TASKS[config.scalar_head],
        "use_dora": adapter.config.dora,
        "use_rslora": adapter.config.rank_stabilized,
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def _as_number(value: float) -> int | float:
    """A whole number without its decimal point, as PEFT writes alpha."""
    return int(value) if math.isfinite(value) and value == int(value) else value
