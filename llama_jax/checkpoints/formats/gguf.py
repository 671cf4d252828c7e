"""GGUF, the format of llama.cpp: LLaMA models read from it, in any type that the package `gguf` can dequantise, and
written to it in float32, float16, bfloat16 or Q8_0.

Source of keys and conventions: ggml-org/llama.cpp, src/llama-model.cpp and conversion of LlamaForCausalLM."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

import ml_dtypes
import numpy as np
from etils import epath

from llama_jax.checkpoints.formats.gguf_header import (
    GgufHeader,
    GgufValues,
    TensorInfo,
    gguf_library,
    read_gguf_header,
)
from llama_jax.checkpoints.formats.gguf_vocabulary import add_vocabulary, vocabulary_files
from llama_jax.checkpoints.formats.weights import (
    ForeignWeights,
    Weights,
    foreign_weights,
    named_tensors,
    refuse_scalar_head,
)
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote, replacing
from llama_jax.core.json_files import agreed
from llama_jax.model.config import LlamaConfig, RopeScaling
from llama_jax.model.rope import inverse_frequencies

GgufType = Literal["F32", "F16", "BF16", "Q8_0"]

_ROPE_DIVISORS = "rope_freqs.weight"
"""llama.cpp has no scaling of Llama 3.1's kind; its converter writes what each rotary frequency is divided by."""

_LINEAR_FACTORS = ("llama.rope.scaling.factor", "llama.rope.scale_linear")
"""Newer and older name; 0 stands for none."""
_NUMPY_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_Q8_0_BLOCK = 32
_DEQUANTISED_BYTES = 2**22
"""Stored bytes that are dequantised at a time; what the library needs beside is several times their size."""


def open_gguf(path: epath.PathLike, say: Callable[[str], None] = print) -> ForeignWeights:
    """The model of a file and its tokenizer; no tensor is read yet. Float32, float16 and bfloat16 ones come as they
    are stored, quantised ones as float32.

    Args:
        say: told of what the file leaves open.

    Raises:
        UserError: the package `gguf` is missing, the file is broken, holds another architecture or a feature that
            LLaMA as it is here does not have.
    """
    header = read_gguf_header(path)
    values = GgufValues(str(path), header.values)
    if (parts := values.whole("split.count", 1)) > 1:
        raise UserError(f"{path}: is one of {parts} parts; join them with llama-gguf-split --merge")
    config = _config(values, header)
    if (divisors := header.tensors.get(_ROPE_DIVISORS)) is not None:
        config = replace(config, rope_scaling=_scaling(values, divisors, config))
    return foreign_weights(
        str(path),
        config,
        vocabulary_files(values, config.vocab_size, say),
        "gguf",
        {name: (info.shape, _dtype(path, info)) for name, info in header.tensors.items()},
        lambda name: _read(path, header.tensors[name]),
        ignored=lambda name: name == _ROPE_DIVISORS,
    )


def write_gguf(target: epath.PathLike, weights: Weights, *, dtype: GgufType | None = None) -> None:
    """Write a model and its tokenizer for llama.cpp, one tensor in memory at a time. The file appears when it is whole.

    Args:
        dtype: type of the matrices; None: as each is stored. Vectors are float32 always, as llama.cpp wants them, which
            loses nothing. Q8_0 goes by blocks of 32: a matrix whose rows are not a multiple of that becomes float16.

    Raises:
        UserError: the package `gguf` is missing, the target is in a bucket, the model has a scalar head, or a value is
            too large for the type.
    """
    if is_remote(target):
        raise UserError(f"{target}: GGUF is written to local files only; write there and copy it")
    refuse_scalar_head(weights, "GGUF")
    library = gguf_library()
    config = weights.config
    tensors, read = named_tensors(weights, "gguf", None)
    types: dict[str, GgufType] = {
        name: _type_to_write(shape, stored, dtype) for name, (shape, stored) in tensors.items()
    }
    with replacing(target) as file, contextlib.closing(library.GGUFWriter(None, "llama")) as writer:
        _add_keys(writer, weights, types, name=Path(target).stem)
        for name, (shape, _) in tensors.items():
            kind = library.GGMLQuantizationType[types[name]]
            block, block_size = library.GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * block_size
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
        if config.rope_scaling is not None:
            divisors = _rope_divisors(config)
            writer.add_tensor_info(_ROPE_DIVISORS, divisors.shape, divisors.dtype, divisors.nbytes)
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, kind in types.items():
            writer.write_tensor_data(_converted(read(name), kind, f"{target}: tensor {name}"))
        if config.rope_scaling is not None:
            writer.write_tensor_data(_rope_divisors(config))


def _config(values: GgufValues, header: GgufHeader) -> LlamaConfig:
    architecture = values.text("general.architecture")
    if architecture != "llama":
        raise UserError(f"{values.path}: general.architecture is {architecture!r:.40}, only 'llama' is read")
    if experts := values.whole("llama.expert_count", 0):
        raise UserError(f"{values.path}: llama.expert_count is {experts}; mixtures of experts are not read")
    _refuse_scaling(values)
    width, heads = values.whole("llama.embedding_length"), values.whole("llama.attention.head_count")
    head_size = values.whole("llama.attention.key_length", width // max(heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (found := values.whole(key, head_size)) != head_size:
            raise UserError(f"{values.path}: {key} is {found}, only heads of one size, {head_size}, are read")
    table = header.tensors.get("token_embd.weight")
    if table is None:
        raise UserError(f"{values.path}: lacks tensor token_embd.weight")
    try:
        return LlamaConfig(
            vocab_size=values.whole("llama.vocab_size", table.shape[0]),
            width=width,
            mlp_width=values.whole("llama.feed_forward_length"),
            num_layers=values.whole("llama.block_count"),
            num_heads=heads,
            num_kv_heads=values.whole("llama.attention.head_count_kv", heads),
            head_size=head_size,
            context_length=values.whole("llama.context_length"),
            rope_base=values.real("llama.rope.freq_base", 10000.0),
            norm_epsilon=values.real("llama.attention.layer_norm_rms_epsilon"),
            tie_embeddings="output.weight" not in header.tensors,
        )
    except UserError as error:
        raise UserError(f"{values.path}: {error}") from None


def _refuse_scaling(values: GgufValues) -> None:
    """Of rotary positions, in the ways that llama.cpp spells; where only a factor is given it takes it for linear, and
    linear by 1 is none."""
    kind = values.text("llama.rope.scaling.type", "")
    factors = {key: values.real(key) for key in _LINEAR_FACTORS if key in values}
    factor = agreed(values.path, factors) or 1.0
    if kind != "none" and (kind not in ("", "linear") or factor != 1):
        raise UserError(f"{values.path}: rotary positions scaled by {kind or 'linear'!r:.40} ({factor:g}) are not read")


def _rope_divisors(config: LlamaConfig) -> np.ndarray:
    """What the scaling divides each rotary frequency by, float32."""
    plain = inverse_frequencies(replace(config, rope_scaling=None))
    return np.asarray(plain / inverse_frequencies(config), np.float32)


def _scaling(values: GgufValues, info: TensorInfo, config: LlamaConfig) -> RopeScaling:
    """The scaling that has the divisors of the tensor: one of the published factors, or else their largest."""
    if info.shape != (config.head_size // 2,):
        raise UserError(f"{values.path}: tensor {info.name} has shape {list(info.shape)}, not half the head size")
    divisors = _read(values.path, info)
    original = values.whole("llama.rope.scaling.original_context_length", 8192)
    largest = round(float(divisors.max()), 3)
    for factor in (8.0, 32.0, *([largest] if largest > 0 else [])) if original else ():
        scaling = RopeScaling(factor=factor, original_context_length=original)
        if np.allclose(_rope_divisors(replace(config, rope_scaling=scaling)), divisors, rtol=1e-5, atol=0.0):
            return scaling
    raise UserError(
        f"{values.path}: tensor {info.name} is not a scaling of Llama 3.1's kind (low 1, high 4, context {original})"
    )


def _dtype(path: epath.PathLike, info: TensorInfo) -> np.dtype:
    if info.type.name in _NUMPY_TYPES:
        return _NUMPY_TYPES[info.type.name]
    library = gguf_library()
    try:
        library.quants.dequantize(np.zeros((1, library.GGML_QUANT_SIZES[info.type][1]), np.uint8), info.type)
    except NotImplementedError:
        raise UserError(f"{path}: tensor {info.name} has type {info.type.name}, which cannot be dequantised") from None
    return np.dtype(np.float32)


def _read(path: epath.PathLike, info: TensorInfo) -> np.ndarray:
    with epath.Path(path).open("rb") as file:
        file.seek(info.start)
        if info.type.name in _NUMPY_TYPES:
            stored = _read_exactly(path, file, info.size, info.name)
            return np.frombuffer(stored, _NUMPY_TYPES[info.type.name]).reshape(info.shape)
        rows = np.empty((math.prod(info.shape[:-1]), info.shape[-1]), np.float32)
        row_bytes = info.size // len(rows)
        step = max(1, _DEQUANTISED_BYTES // row_bytes)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            stored = np.frombuffer(_read_exactly(path, file, len(some) * row_bytes, info.name), np.uint8)
            with np.errstate(invalid="ignore", over="ignore"):  # whoever reads looks for values that are not finite
                some[:] = gguf_library().quants.dequantize(stored.reshape(len(some), row_bytes), info.type)
    return rows.reshape(info.shape)


def _read_exactly(path: epath.PathLike, file: IO[Any], count: int, name: str) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise UserError(f"{path}: ended within tensor {name} while it was read")
    return content


def _type_to_write(shape: tuple[int, ...], stored: np.dtype, dtype: GgufType | None) -> GgufType:
    if len(shape) == 1:
        return "F32"
    if dtype is None:
        kept: Mapping[str, GgufType] = {"float16": "F16", "bfloat16": "BF16"}
        return kept.get(str(stored), "F32")
    return "F16" if dtype == "Q8_0" and shape[-1] % _Q8_0_BLOCK else dtype


def _converted(array: np.ndarray, kind: GgufType, where: str) -> np.ndarray:
    if kind == "Q8_0":
        library = gguf_library()
        return library.quants.quantize(array.astype(np.float32, copy=False), library.GGMLQuantizationType.Q8_0)
    with np.errstate(over="ignore"):
        converted = array.astype(_NUMPY_TYPES[kind], copy=False)
    if not np.isfinite(converted).all():
        raise UserError(f"{where} has values up to {np.abs(array).max():g}, too large for {kind}; write F32 or BF16")
    return converted.view(np.uint8)  # the library writes what it is given, but does not know bfloat16


def _add_keys(writer: Any, weights: Weights, types: Mapping[str, GgufType], name: str) -> None:
    config, library = weights.config, gguf_library()
    kind = types["blk.0.ffn_up.weight"]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(library.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    if config.rope_scaling is not None:
        writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_context_length)
    add_vocabulary(writer, weights.files, config.vocab_size, where=weights.source)
