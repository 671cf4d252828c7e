"""Models as Meta distributes them: params.json and consolidated.00.pth, … , one file for each model-parallel rank.

Sources: `model.py` of meta-llama/llama and meta-llama/llama3, and, for what params.json leaves open, the converter of
Hugging Face transformers (`convert_llama_weights_to_hf.py`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from llama_jax.checkpoints.formats.directories import (
    has_member,
    local_directory,
    member,
    read_bundle,
    write_bundle,
    write_json,
)
from llama_jax.checkpoints.formats.safetensors_files import same_bits
from llama_jax.checkpoints.formats.torch_files import TorchFile, write_torch
from llama_jax.checkpoints.formats.weights import (
    ForeignWeights,
    Weights,
    foreign_weights,
    named_tensors,
    refuse_scalar_head,
)
from llama_jax.core.errors import UserError
from llama_jax.core.json_files import JsonFields, read_json
from llama_jax.data.tokenizers import has_tokenizer, meta_files, tokenizer_from_files
from llama_jax.model.config import LlamaConfig, RopeScaling

_LONGEST_PARAMS = 2**20
_TABLE, _HEAD, _GATE = "tok_embeddings.weight", "output.weight", "layers.0.feed_forward.w1.weight"
_LLAMA2_ROPE_BASE, _LLAMA3_ROPE_BASE = 10000.0, 500000.0


def open_meta(path: epath.PathLike) -> ForeignWeights:
    """The model of a directory; a tokenizer.model in it or, as LLaMA 1 was shipped, above it belongs to it.

    A head that equals the embedding table bit by bit, as in Llama 3.2, is taken for the same parameter.

    Raises:
        UserError: a file is missing, broken, or may not be opened, or the files do not fit together.
    """
    directory = local_directory(path)
    params = member(directory, "params.json")
    fields = JsonFields(read_json(params, max_bytes=_LONGEST_PARAMS), str(params))
    ranks = _open_ranks(directory)
    stored = ranks[0].tensors
    # Llama 3 splits the table by token, earlier ones by feature.
    table_axis = 0 if stored[_TABLE][0][1:] == (fields.whole("dim"),) else 1
    axes = {name: _split_axis(name, table_axis) for name in stored}
    tensors = {name: (_whole_shape(shape, axes[name], len(ranks)), dtype) for name, (shape, dtype) in stored.items()}
    tied = _HEAD not in stored or (
        axes[_HEAD] == axes[_TABLE] and all(same_bits(rank.read(_HEAD), rank.read(_TABLE)) for rank in ranks)
    )
    config = _architecture(fields, tensors[_TABLE][0], tensors[_GATE][0], tied=tied)
    if tied:
        tensors.pop(_HEAD, None)
    files = read_bundle(directory)
    if "tokenizer.model" not in files and has_member(directory.parent, "tokenizer.model"):
        files["tokenizer.model"] = read_bundle(directory.parent)["tokenizer.model"]
    return foreign_weights(
        str(path),
        config,
        files,
        "meta",
        tensors,
        lambda name: _joined(ranks, name, axes[name]),
        ignored=lambda name: name.endswith("rope.freqs"),
    )


def _open_ranks(directory: Path) -> Sequence[TorchFile]:
    """The files in the order of the ranks; all have the same tensors, of the same shapes and types."""
    found = sorted(path.name for path in directory.glob("consolidated.*.pth"))
    expected = [f"consolidated.{rank:02d}.pth" for rank in range(max(1, len(found)))]
    if missing := min(set(expected) - set(found), default=None):
        raise UserError(f"{directory}: lacks {missing}; it has {', '.join(found) or 'no consolidated.*.pth'}")
    ranks = [TorchFile(member(directory, name)) for name in expected]
    for rank in ranks:
        if different := dict(rank.tensors.items() ^ ranks[0].tensors.items()):
            raise UserError(f"{rank.path}: tensor {min(different)} is not as in {ranks[0].path.name}")
    for name in (_TABLE, _GATE):
        if len(ranks[0].tensors.get(name, [()])[0]) != 2:
            raise UserError(f"{ranks[0].path}: lacks {name}, or it is not a matrix")
    return ranks


def _split_axis(name: str, table_axis: int) -> int | None:
    """Axis of [out, in] along which the ranks split a tensor; None: each rank has all of it."""
    if name.endswith("norm.weight"):
        return None
    if name == _TABLE:
        return table_axis
    return 1 if name.endswith((".wo.weight", ".w2.weight")) else 0


def _whole_shape(shape: tuple[int, ...], axis: int | None, ranks: int) -> tuple[int, ...]:
    return tuple(size * ranks if place == axis else size for place, size in enumerate(shape))


def _joined(ranks: Sequence[TorchFile], name: str, axis: int | None) -> np.ndarray:
    parts = [rank.read(name) for rank in ranks]
    if axis is not None:
        return np.concatenate(parts, axis)
    for rank, part in zip(ranks, parts, strict=True):
        if not same_bits(part, parts[0]):
            raise UserError(f"{rank.path}: tensor {name} differs from that in {ranks[0].path.name}")
    return parts[0]


def _architecture(fields: JsonFields, table: tuple[int, ...], gate: tuple[int, ...], *, tied: bool) -> LlamaConfig:
    """The architecture, from params.json and the shapes of the embedding table and of a gate matrix."""
    if fields.values.get("vocab_size", -1) not in (-1, table[0]):  # LLaMA 1 and 2 left it to the tokenizer
        raise UserError(f"{fields.where}: vocab_size is not that of {_TABLE}, which has {table[0]} rows")
    width, heads = fields.whole("dim"), fields.whole("n_heads")
    kv_heads = fields.whole("n_kv_heads", heads)
    if width % (2 * heads):
        raise UserError(
            f"{fields.where}: n_heads is {heads}; dim {width} does not split into so many heads of even size"
        )
    if heads % kv_heads:
        raise UserError(f"{fields.where}: n_kv_heads is {kv_heads}, which does not divide n_heads {heads}")
    multiplier = fields.number("ffn_dim_multiplier", 1.0)
    if (mlp_width := _mlp_width(width, fields.whole("multiple_of", 256), multiplier)) != gate[0]:
        raise UserError(
            f"{fields.where}: dim, multiple_of and ffn_dim_multiplier make {mlp_width} rows, {_GATE} has {gate[0]}"
        )
    scaling = RopeScaling(fields.number("rope_scaling_factor", _scaling_factor(tied=tied)))
    return LlamaConfig(
        vocab_size=table[0],
        width=width,
        mlp_width=mlp_width,
        num_layers=fields.whole("n_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=width // heads,
        context_length=fields.whole("max_seq_len", _context_length(fields)),
        rope_base=fields.number("rope_theta", _LLAMA2_ROPE_BASE, least=1.0),
        rope_scaling=scaling if fields.flag("use_scaled_rope", False) else None,
        norm_epsilon=fields.number("norm_eps"),
        tie_embeddings=tied,
    )


def _mlp_width(width: int, multiple_of: int, multiplier: float) -> int:
    """Meta's formula."""
    hidden = int(multiplier * int(2 * 4 * width / 3))
    return -(-hidden // multiple_of) * multiple_of


def _scaling_factor(*, tied: bool) -> float:
    """What `use_scaled_rope` stands for; of the models that have it, those of Llama 3.2 tie their embeddings."""
    return 32.0 if tied else 8.0


def _context_length(fields: JsonFields) -> int:
    """What each generation was trained with, as params.json does not say."""
    base = fields.number("rope_theta", _LLAMA2_ROPE_BASE)
    if fields.flag("use_scaled_rope", False):
        return 131072
    if base != _LLAMA2_ROPE_BASE:
        return 8192 if base == _LLAMA3_ROPE_BASE else 16384  # Llama 3, Code Llama
    # The largest LLaMA 1 has the epsilon of Llama 2, but not yet the grouped queries of Llama 2 of that depth.
    is_llama1 = fields.number("norm_eps") < 1e-5 or (
        fields.whole("n_layers") == 80 and "n_kv_heads" not in fields.values
    )
    return 2048 if is_llama1 else 4096


def write_meta(target: epath.PathLike, weights: Weights, *, shards: int = 1, dtype: np.dtype | None = None) -> None:
    """Write a model for Meta's code. The format has no field for the context length.

    Args:
        target: an existing local directory.
        shards: model-parallel ranks, each with a file of its own.
        dtype: type of all tensors; None: as stored.

    Raises:
        UserError: the model has a scalar head, Meta's code could not run it on so many ranks, or a value is too large
            for the type.
    """
    refuse_scalar_head(weights, "Meta's format")
    directory = local_directory(target)
    config = weights.config
    params = _params(config)
    sizes = {"num_kv_heads": config.num_kv_heads, "mlp_width": config.mlp_width, "vocab_size": config.vocab_size}
    for field, size in sizes.items():
        if size % shards:
            raise UserError(f"--shards {shards}: does not divide {field} {size} of the model")
    tensors, read = named_tensors(weights, "meta", dtype)
    if config.tie_embeddings:
        tensors[_HEAD] = tensors[_TABLE]  # Meta's code always looks for a head
    table_axis = 0 if config.tie_embeddings or config.rope_base == _LLAMA3_ROPE_BASE else 1
    axes = {name: _split_axis(name, table_axis) for name in tensors}
    parts = {
        name: (tuple(size // shards if place == axes[name] else size for place, size in enumerate(shape)), kind)
        for name, (shape, kind) in tensors.items()
    }
    for rank in range(shards):

        def part(name: str, rank: int = rank) -> np.ndarray:
            whole = read(_TABLE if name == _HEAD and config.tie_embeddings else name)
            axis = axes[name]
            return whole if axis is None else np.split(whole, shards, axis)[rank]

        write_torch(directory / f"consolidated.{rank:02d}.pth", parts, part)
    files = dict(weights.files)
    if has_tokenizer(files):
        files |= meta_files(tokenizer_from_files(files, weights.source).for_model(config.vocab_size, weights.source))
    write_bundle(directory, files)
    write_json(directory / "params.json", params)


def _params(config: LlamaConfig) -> Mapping[str, Any]:
    """The params.json of a model. Fields with their default are left out: the code of a generation takes no field that
    a later one brought."""
    if config.head_size * config.num_heads != config.width:
        raise UserError(
            f"--format meta: has no field for head_size {config.head_size}; "
            f"it must be width {config.width} / num_heads {config.num_heads}"
        )
    if config.rope_scaling not in (None, RopeScaling(_scaling_factor(tied=config.tie_embeddings))):
        raise UserError(f"--format meta: has no field for {config.rope_scaling}, only for that of Llama 3.1 and 3.2")
    params: dict[str, Any] = {
        "dim": config.width,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.norm_epsilon,
        "multiple_of": config.mlp_width,  # the formula rounds up to it, so anything not above it becomes it
    }
    if _mlp_width(config.width, config.mlp_width, 1.0) != config.mlp_width:
        params["ffn_dim_multiplier"] = (config.mlp_width - 0.5) / int(2 * 4 * config.width / 3)
    if config.num_kv_heads != config.num_heads:
        params["n_kv_heads"] = config.num_kv_heads
    if config.rope_base != _LLAMA2_ROPE_BASE:
        params["rope_theta"] = config.rope_base
    if config.rope_scaling is not None:
        params["use_scaled_rope"] = True
    return params
