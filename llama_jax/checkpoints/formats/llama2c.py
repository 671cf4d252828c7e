"""Model files of llama2.c (version 0): a header of seven int32, then float32 arrays in a fixed order.

Source of the format: `export.py` and `run.c` of karpathy/llama2.c."""

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath

from llama_jax.checkpoints.formats.weights import (
    WeightName,
    Weights,
    foreign_weights,
    from_ours,
    refuse_scalar_head,
    weight_names,
)
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import has_tokenizer, llama2c_bytes, tokenizer_from_files
from llama_jax.model import paths
from llama_jax.model.config import LlamaConfig

_HEADER = struct.Struct("<7i")
_ROTARY = "llama2c_rotary.bin"
"""The file's cosines and sines travel under this name: run.c does not read them, but a copy should be equal byte for
byte, and libraries differ in the last bit of a cosine."""


def _layout(config: LlamaConfig) -> tuple[list[tuple[WeightName | None, int, tuple[int, ...]]], int]:
    """The parts in the order of the file, and the length of the file in bytes.

    A part is a parameter, for all layers (None: the tables of rotary angles), its offset in bytes, and the shape of one
    tensor as stored, [out, in].
    """
    body = [name for name in weight_names(config) if name.ours != paths.HEAD]
    head = [name for name in weight_names(config) if name.ours == paths.HEAD]
    parts, offset = [], _HEADER.size
    for name in (*body, None, *head):
        if name is None:
            shape, count = (2, config.context_length, config.head_size // 2), 1
        else:
            shape = name.shape(config)[:: -1 if name.transposed else 1]
            count = config.num_layers if name.per_layer else 1
        parts.append((name, offset, shape))
        offset += 4 * int(np.prod(shape)) * count
    return parts, offset


def open_llama2c(path: epath.PathLike) -> Weights:
    """The weights of a llama2.c model file; a `tokenizer.bin` beside it belongs to it.

    Raises:
        UserError: the header does not describe a model, or the file is not as long as the header says.
    """
    file = epath.Path(path)
    with file.open("rb") as stream:
        config = _config(path, stream.read(_HEADER.size))
    parts, expected = _layout(config)
    if (size := file.stat().length) != expected:
        raise UserError(f"{path}: has {size} bytes, its header asks for {expected}; not a llama2.c model?")
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    files: dict[str, bytes] = {}
    for name, offset, shape in parts:
        if name is None:
            files[_ROTARY] = _read(file, offset, shape).tobytes()
            continue
        for layer in range(config.num_layers if name.per_layer else 1):
            places[name.meta.format(layer)] = (offset + layer * 4 * int(np.prod(shape)), shape)
    if (beside := file.with_name("tokenizer.bin")).exists():
        files["tokenizer.bin"] = beside.read_bytes()
    tensors = {name: (shape, np.dtype("float32")) for name, (_, shape) in places.items()}
    return foreign_weights(str(path), config, files, "meta", tensors, lambda name: _read(file, *places[name]))


def _read(file: epath.Path, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    with file.open("rb") as stream:
        stream.seek(offset)
        return np.frombuffer(stream.read(4 * int(np.prod(shape))), "<f4").reshape(shape)


def _config(path: epath.PathLike, header: bytes) -> LlamaConfig:
    if len(header) < _HEADER.size:
        raise UserError(f"{path}: has {len(header)} bytes, too short for a llama2.c model")
    values = width, mlp_width, layers, heads, kv_heads, vocab, context = _HEADER.unpack(header)
    if not (
        0 < heads <= width and width % (2 * heads) == 0 and min(mlp_width, layers, kv_heads, context) > 0 and vocab
    ):
        raise UserError(f"{path}: its header {values} does not describe a llama2.c model")
    return LlamaConfig(
        vocab_size=abs(vocab),
        width=width,
        mlp_width=mlp_width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=width // heads,
        context_length=context,
        norm_epsilon=1e-5,
        tie_embeddings=vocab > 0,
    )


def write_llama2c(target: epath.Path, weights: Weights) -> None:
    """Write a model file, in float32 whatever the source, and its `tokenizer.bin` beside it.

    Raises:
        UserError: run.c could not run such a model.
    """
    refuse_scalar_head(weights, "llama2.c")
    config = weights.config
    fixed = {
        "head_size": config.width // config.num_heads,
        "rope_base": 10000.0,
        "rope_scaling": None,
        "norm_epsilon": 1e-5,
    }
    for field, value in fixed.items():
        if (found := getattr(config, field)) != value:
            raise UserError(f"--format llama2c: run.c knows {field} {value} only, the model has {found}")
    vocab = config.vocab_size if config.tie_embeddings else -config.vocab_size
    header = (config.width, config.mlp_width, config.num_layers, config.num_heads, config.num_kv_heads, vocab)
    with target.open("wb") as stream:
        stream.write(_HEADER.pack(*header, config.context_length))
        for tensor in _tensors(config, weights):
            stream.write(tensor.astype("<f4").tobytes())
    if has_tokenizer(weights.files):
        tokenizer = tokenizer_from_files(weights.files, weights.source).for_model(config.vocab_size, weights.source)
        target.with_name("tokenizer.bin").write_bytes(llama2c_bytes(tokenizer))


def _tensors(config: LlamaConfig, weights: Weights) -> Iterator[np.ndarray]:
    for name, _, _ in _layout(config)[0]:
        if name is None:
            yield _rotary(config, weights.files)
            continue
        for layer in range(config.num_layers) if name.per_layer else (None,):
            yield from_ours(name, weights.read(name, layer), config, "meta")


def _rotary(config: LlamaConfig, files: Mapping[str, bytes]) -> np.ndarray:
    """Cosines, then sines, of every position and pair."""
    if len(files.get(_ROTARY, b"")) == 4 * config.context_length * config.head_size:
        return np.frombuffer(files[_ROTARY], "<f4")
    exponents = np.arange(0, config.head_size, 2, dtype=np.float32) / np.float32(config.head_size)
    angles = np.outer(np.arange(config.context_length, dtype=np.float32), 1 / np.float32(config.rope_base) ** exponents)
    return np.stack([np.cos(angles), np.sin(angles)])
