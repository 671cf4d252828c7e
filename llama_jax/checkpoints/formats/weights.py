"""One table of weight names, ours and those of other formats, and the one place where rotary conventions meet.

Every format is read through `Weights` and written from it, one tensor at a time; what differs between the formats is a
column of the table, and whether q and k pair neighbours."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array
from llama_jax.core.errors import UserError, nearest
from llama_jax.model import paths
from llama_jax.model.config import LlamaConfig


@dataclass(frozen=True)
class WeightName:
    """One parameter in every naming; `{}` stands for the layer.

    Attributes:
        ours: path in our tree; below `layers/` an array has a leading axis of layers.
        hugging_face: name in transformers' state dict.
        meta: name in Meta's checkpoints, which have no scalar head.
        gguf: name in llama.cpp's files, which have none either.
        axes: of one tensor in our orientation: V vocabulary, D model width, F MLP width, Q all queries, K all keys, 1
            the one output of a scalar head.
        transposed: other formats store matrices as [out, in], we as [in, out].
        rotary: rows are paired by the rotary embedding, so the order in Meta's and llama.cpp's files differs from ours.
    """

    ours: str
    hugging_face: str
    meta: str
    gguf: str
    axes: str
    transposed: bool = True
    rotary: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether there is one for each layer."""
        return paths.in_layers(self.ours)

    def in_layer(self, layer: int | None) -> str:
        """The parameter, or one layer of it, as messages name it."""
        return self.ours if layer is None else f"{self.ours} of layer {layer}"

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """Shape of one tensor in our orientation, vocabulary not padded.

        Not taken from the model's declaration: a configuration comes from a stranger's file, and tracing a model of its
        sizes could take any amount of memory. A test compares the two.
        """
        sizes = {"V": config.vocab_size, "D": config.width, "F": config.mlp_width, "1": 1}
        sizes |= {"Q": config.num_heads * config.head_size, "K": config.num_kv_heads * config.head_size}
        return tuple(sizes[axis] for axis in self.axes)


def _of_layer(ours: str, hugging_face: str, meta: str, gguf: str, axes: str, **changes: bool) -> WeightName:
    theirs = (f"model.layers.{{}}.{hugging_face}.weight", f"layers.{{}}.{meta}.weight", f"blk.{{}}.{gguf}.weight")
    return WeightName(paths.of_layers(ours), *theirs, axes, **changes)


WEIGHTS = (
    WeightName(
        paths.TABLE, "model.embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight", "VD", transposed=False
    ),
    _of_layer("attention_norm/scale", "input_layernorm", "attention_norm", "attn_norm", "D", transposed=False),
    _of_layer("attention/q_proj/kernel", "self_attn.q_proj", "attention.wq", "attn_q", "DQ", rotary=True),
    _of_layer("attention/k_proj/kernel", "self_attn.k_proj", "attention.wk", "attn_k", "DK", rotary=True),
    _of_layer("attention/v_proj/kernel", "self_attn.v_proj", "attention.wv", "attn_v", "DK"),
    _of_layer("attention/o_proj/kernel", "self_attn.o_proj", "attention.wo", "attn_output", "QD"),
    _of_layer("mlp_norm/scale", "post_attention_layernorm", "ffn_norm", "ffn_norm", "D", transposed=False),
    _of_layer("mlp/gate_proj/kernel", "mlp.gate_proj", "feed_forward.w1", "ffn_gate", "DF"),
    _of_layer("mlp/down_proj/kernel", "mlp.down_proj", "feed_forward.w2", "ffn_down", "FD"),
    _of_layer("mlp/up_proj/kernel", "mlp.up_proj", "feed_forward.w3", "ffn_up", "DF"),
    WeightName("final_norm/scale", "model.norm.weight", "norm.weight", "output_norm.weight", "D", transposed=False),
    WeightName(paths.HEAD, "lm_head.weight", "output.weight", "output.weight", "DV"),
    WeightName(paths.SCORE, "score.weight", "", "", "D1"),
)

Naming = Literal["hugging_face", "meta", "gguf"]
_VOCABULARY_AXES = {paths.TABLE: 0, paths.HEAD: 1}
INTERLEAVED: Mapping[Naming, bool] = {"hugging_face": False, "meta": True, "gguf": True}
"""Whether rows of q and k are stored so that the rotary embedding pairs neighbours."""


def weight_names(config: LlamaConfig) -> tuple[WeightName, ...]:
    """The rows of the table that a model of this configuration has."""
    has = {paths.HEAD: config.has_lm_head, paths.SCORE: config.scalar_head}
    return tuple(name for name in WEIGHTS if has.get(name.ours, True))


def refuse_scalar_head(weights: "Weights", kind: str) -> None:
    """Of a format that has no place for one.

    Args:
        kind: the format, for the message.

    Raises:
        UserError: the model has one.
    """
    if weights.config.scalar_head:
        raise UserError(f"{weights.source}: has a scalar head, which {kind} has no place for; use --format hf or orbax")


def stored_shape(config: LlamaConfig, name: WeightName) -> tuple[int, ...]:
    """Shape of the array in our tree: layers stacked, vocabulary padded."""
    layers = (config.num_layers,) if name.per_layer else ()
    return layers + name.shape(replace(config, vocab_size=config.padded_vocab_size))


def tensors_of(config: LlamaConfig) -> Iterator[tuple[WeightName, int | None]]:
    """Every tensor of a model, layer by layer where there is one for each layer: row of the table, and layer."""
    for name in weight_names(config):
        yield from ((name, layer) for layer in (range(config.num_layers) if name.per_layer else (None,)))


@runtime_checkable
class Weights(Protocol):
    """A model in some file format, read one tensor at a time."""

    @property
    def source(self) -> str:
        """File or directory it is read from, for messages."""
        ...

    @property
    def config(self) -> LlamaConfig:
        """The architecture."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """What travels with the weights, by Hugging Face's file names: `tokenizer.model`, `tokenizer.json` or
        `tokenizer.bin`, `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`. May be empty."""
        ...

    def dtype(self, name: WeightName) -> np.dtype:
        """Type in which `read` gives this parameter (the same for all layers): as stored, float32 if quantised."""
        ...

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        """One tensor in our orientation [in, out] and rotary order, without padding of the vocabulary.

        Raises:
            UserError: it holds a value that is not finite.
        """
        ...


@dataclass(frozen=True)
class ForeignWeights:
    """`Weights` over the named tensors of another format. Made by `foreign_weights`, which checks them."""

    source: str
    config: LlamaConfig
    files: Mapping[str, bytes]
    naming: Naming
    dtypes: Mapping[str, np.dtype]
    """By name in our tree."""
    read_tensor: Callable[[str], np.ndarray]

    def dtype(self, name: WeightName) -> np.dtype:
        return self.dtypes[name.ours]

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        theirs = getattr(name, self.naming).format(layer)
        array = self.read_tensor(theirs)
        if not np.isfinite(array).all():
            raise UserError(f"{self.source}: tensor {theirs} has {int((~np.isfinite(array)).sum())} non-finite values")
        return to_ours(name, array, self.config, self.naming).astype(self.dtypes[name.ours], copy=False)


def foreign_weights(
    source: str,
    config: LlamaConfig,
    files: Mapping[str, bytes],
    naming: Naming,
    tensors: Mapping[str, tuple[tuple[int, ...], Any]],
    read_tensor: Callable[[str], np.ndarray],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> ForeignWeights:
    """The weights of a model, from the named tensors of another format; reads none of them.

    Args:
        source: file or directory, for messages.
        tensors: shape in the orientation of the format ([out, in]) and NumPy type of each stored tensor.
        read_tensor: one tensor by its name in the format, of that shape and type.
        ignored: names that carry nothing of ours, such as tables of rotary angles.

    Raises:
        UserError: a tensor is missing, has another shape or a type that is not floating-point, or is not known.
    """
    if len(tensors) < 9 * config.num_layers:  # so that a configuration of 10^9 layers is refused at once
        raise UserError(f"{source}: has {len(tensors)} tensors, too few for num_layers {config.num_layers}")
    left = {name for name in tensors if not ignored(name)}
    dtypes: dict[str, np.dtype] = {}
    for name, layer in tensors_of(config):
        theirs = getattr(name, naming).format(layer)
        if theirs not in tensors:
            raise UserError(f"{source}: lacks tensor {theirs}{nearest(theirs, left)}")
        left.discard(theirs)
        shape, dtype = tensors[theirs]
        expected = name.shape(config)[:: -1 if name.transposed else 1]
        if tuple(shape) != expected:
            raise UserError(
                f"{source}: tensor {theirs} has shape {list(shape)}, the configuration asks for {list(expected)}"
            )
        if not is_floating(dtype):
            raise UserError(f"{source}: tensor {theirs} has type {dtype}; float32, float16 or bfloat16 is expected")
        dtypes[name.ours] = np.promote_types(dtypes.get(name.ours, np.dtype(dtype)), np.dtype(dtype))
    if left:
        some = ", ".join(sorted(left)[:3])
        raise UserError(f"{source}: has {len(left)} tensors that do not fit the configuration: {some}")
    return ForeignWeights(source, config, files, naming, dtypes, read_tensor)


def named_tensors(
    weights: Weights, naming: Naming, dtype: np.dtype | None
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], Callable[[str], np.ndarray]]:
    """Shape ([out, in]) and type of each tensor by its name in the format, and a function that makes one by name.

    The function raises UserError when a value is too large for the type asked for.

    Args:
        dtype: type of all tensors; None: as stored.
    """
    places = {getattr(name, naming).format(layer): (name, layer) for name, layer in tensors_of(weights.config)}
    tensors = {
        theirs: (name.shape(weights.config)[:: -1 if name.transposed else 1], dtype or weights.dtype(name))
        for theirs, (name, _) in places.items()
    }

    def read(theirs: str) -> np.ndarray:
        name, layer = places[theirs]
        with np.errstate(over="ignore"):
            array = weights.read(name, layer).astype(tensors[theirs][1], copy=False)
        if not np.isfinite(array).all():
            raise UserError(f"tensor {theirs}: has values too large for {array.dtype}; bfloat16 or float32 holds them")
        return from_ours(name, array, weights.config, naming)

    return tensors, read


def is_floating(dtype: Any) -> bool:
    """Whether weights may have this type: float16, bfloat16, float32 or float64."""
    return str(np.dtype(dtype)) in ("float16", "bfloat16", "float32", "float64")


def to_ours(name: WeightName, array: np.ndarray, config: LlamaConfig, naming: Naming) -> np.ndarray:
    """A tensor of another format, [out, in], in our orientation and rotary order."""
    if name.rotary and INTERLEAVED[naming]:
        # Meta's pairs are neighbours, ours and transformers' are half a head apart.
        array = array.reshape(-1, config.head_size // 2, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    return array.T if name.transposed else array


def from_ours(name: WeightName, array: np.ndarray, config: LlamaConfig, naming: Naming) -> np.ndarray:
    """The inverse of `to_ours`, contiguous."""
    array = array.T if name.transposed else array
    if name.rotary and INTERLEAVED[naming]:
        array = array.reshape(-1, 2, config.head_size // 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)


def is_padded(path: str, config: LlamaConfig) -> bool:
    """Whether a parameter of our tree has rows or columns that no token reaches."""
    return path in _VOCABULARY_AXES and config.padded_vocab_size > config.vocab_size


def without_padding(leaf: Array, path: str, config: LlamaConfig) -> Array:
    """A parameter of our tree, zeros where no token reaches. A run may have anything there, other formats nothing."""
    if not is_padded(path, config):
        return leaf
    is_token = jax.lax.broadcasted_iota(np.int32, leaf.shape, _VOCABULARY_AXES[path]) < config.vocab_size
    return jnp.where(is_token, leaf, jnp.zeros((), leaf.dtype))


def padded(array: np.ndarray, name: WeightName, config: LlamaConfig) -> np.ndarray:
    """A tensor in our orientation, zeros added along the vocabulary up to what is stored."""
    missing = config.padded_vocab_size - config.vocab_size
    rows, columns = {paths.TABLE: (missing, 0), paths.HEAD: (0, missing)}.get(name.ours, (0, 0))
    return np.pad(array, ((0, rows), (0, columns))) if rows or columns else array
