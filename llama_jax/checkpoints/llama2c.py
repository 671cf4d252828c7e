"""Model files of llama2.c (version 0): a header of seven int32, then float32 arrays in a fixed order.

Source of the format: `export.py` and `run.c` of karpathy/llama2.c."""

import struct
from collections.abc import Iterator

import numpy as np
from etils import epath

from llama_jax.checkpoints.weights import padded, split_pairs
from llama_jax.core import tree
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.model.config import LlamaConfig

_HEADER = struct.Struct("<7i")


def read_llama2c(path: epath.PathLike) -> tuple[LlamaConfig, PyTree]:
    """Configuration and float32 parameters of a llama2.c model file.

    Raises:
        UserError: the header makes no model, or the file is not as long as the header says.
    """
    content = epath.Path(path).read_bytes()
    config = _config(path, content)
    D, F, L, V = config.width, config.mlp_width, config.num_layers, config.vocab_size
    q_rows, kv_rows = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    rotary = 2 * config.context_length * config.head_size // 2
    # Order of the file; the two tables of rotary angles before the head are computed, not read.
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("embedding/table", (V, D)),
        ("layers/attention_norm/scale", (L, D)),
        ("layers/attention/q_proj/kernel", (L, q_rows, D)),
        ("layers/attention/k_proj/kernel", (L, kv_rows, D)),
        ("layers/attention/v_proj/kernel", (L, kv_rows, D)),
        ("layers/attention/o_proj/kernel", (L, D, q_rows)),
        ("layers/mlp_norm/scale", (L, D)),
        ("layers/mlp/gate_proj/kernel", (L, F, D)),
        ("layers/mlp/down_proj/kernel", (L, D, F)),
        ("layers/mlp/up_proj/kernel", (L, F, D)),
        ("final_norm/scale", (D,)),
        ("rotary", (rotary,)),
    ]
    if not config.tie_embeddings:
        shapes.append(("lm_head/kernel", (V, D)))
    expected = _HEADER.size + 4 * sum(int(np.prod(shape)) for _, shape in shapes)
    if len(content) != expected:
        raise UserError(f"{path}: has {len(content)} bytes, its header asks for {expected}; not a llama2.c model?")
    return config, tree.unflatten(dict(_parameters(config, content, shapes)))


def _config(path: epath.PathLike, content: bytes) -> LlamaConfig:
    if len(content) < _HEADER.size:
        raise UserError(f"{path}: has {len(content)} bytes, too short for a llama2.c model")
    width, mlp_width, layers, heads, kv_heads, vocab, context = _HEADER.unpack_from(content)
    if not (0 < heads <= width and width % heads == 0 and min(mlp_width, layers, kv_heads, context) > 0 and vocab):
        raise UserError(f"{path}: its header {_HEADER.unpack_from(content)} makes no llama2.c model")
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


def _parameters(
    config: LlamaConfig, content: bytes, shapes: list[tuple[str, tuple[int, ...]]]
) -> Iterator[tuple[str, np.ndarray]]:
    offset = _HEADER.size
    for path, shape in shapes:
        count = int(np.prod(shape))
        array = np.frombuffer(content, "<f4", count, offset).reshape(shape)
        offset += 4 * count
        if path == "rotary":
            continue
        if "q_proj" in path or "k_proj" in path:
            array = np.stack([split_pairs(rows, config.head_size) for rows in array])
        if path in ("embedding/table", "lm_head/kernel"):
            array = padded(array, config.padded_vocab_size)
        yield path, array.swapaxes(-1, -2) if path.endswith("kernel") else array
