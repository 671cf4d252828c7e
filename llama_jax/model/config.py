"""The shape of a LLaMA, the table of published sizes, and the shape of an adapter. Independent of arrays."""

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from llama_jax.core.errors import UserError, nearest


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's rescaling of the rotary frequencies: low ones are divided by `factor`, high ones are kept, those
    between are interpolated (Llama 3 herd of models, section 3.2; transformers calls it `rope_type: llama3`)."""

    factor: float = 8.0
    """Divisor of the low frequencies."""
    low_frequency_factor: float = 1.0
    """Wavelengths above `original_context_length / low_frequency_factor` are divided by `factor`."""
    high_frequency_factor: float = 4.0
    """Wavelengths below `original_context_length / high_frequency_factor` are kept."""
    original_context_length: int = 8192
    """Context length the model was trained with before the rescaling."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"model.rope_scaling.{name}: {value} must be greater than 0")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if not low < high:
            raise UserError(
                f"model.rope_scaling.high_frequency_factor: {high} must be greater than low_frequency_factor {low}"
            )


@dataclass(frozen=True)
class LlamaConfig:
    """Architecture of a LLaMA (Touvron et al. 2023, arXiv:2302.13971; grouped-query attention from Llama 2,
    arXiv:2307.09288). Everything that decides the shape and the mathematics of the weights, and nothing else."""

    vocab_size: int = 2048
    """Number of token ids the tokenizer can produce."""
    width: int = 128
    """Size of the residual stream (D)."""
    mlp_width: int = 352
    """Size of the SwiGLU hidden layer (F)."""
    num_layers: int = 4
    """Number of blocks (L)."""
    num_heads: int = 4
    """Query heads (N)."""
    num_kv_heads: int = 4
    """Key/value heads (K); fewer than `num_heads` is grouped-query attention."""
    head_size: int = 32
    """Size of one head (H), even."""
    context_length: int = 2048
    """Longest sequence the model is meant for, in tokens."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's rescaling of the rotary frequencies; None for none."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = False
    """Use the embedding table as the output head."""
    scalar_head: bool = False
    """End in one number a position, as reward models and critics do, in place of the output head."""
    vocab_multiple: int = 128
    """Embedding and head are stored with the vocabulary rounded up to a multiple of this, so that any mesh divides
    it. The extra rows can never be predicted and are left out of counts and exports."""

    def __post_init__(self) -> None:
        for field in fields(LlamaConfig):
            value = getattr(self, field.name)
            if field.type in (int, float) and not value > 0:
                raise UserError(f"model.{field.name}: {value} must be greater than 0")
        if self.rope_base < 1:
            raise UserError(f"model.rope_base: {self.rope_base} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads: {self.num_heads} is not divisible by model.num_kv_heads {self.num_kv_heads}; "
                "every key/value head must serve the same number of query heads"
            )
        if self.head_size % 2:
            raise UserError(f"model.head_size: {self.head_size} must be even, rotary positions turn pairs")

    @property
    def has_lm_head(self) -> bool:
        """Whether there is an output matrix apart from the embedding table."""
        return not (self.tie_embeddings or self.scalar_head)

    @property
    def table_is_head(self) -> bool:
        """Whether the embedding table multiplies the residual stream, as the output matrix."""
        return self.tie_embeddings and not self.scalar_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table as stored."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {field.name: asdict(self)[field.name] for field in fields(LlamaConfig)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "LlamaConfig":
        """The inverse of `to_json`. Models from before there were scalar heads have none.

        Raises:
            UserError: a key is unknown or missing.
        """
        values = {"scalar_head": False} | values
        known = {field.name for field in fields(LlamaConfig)}
        for key in values:
            if key not in known:
                raise UserError(f"model config: unknown field '{key}'{nearest(key, known)}")
        if missing := sorted(known - values.keys()):
            raise UserError(f"model config: missing {', '.join(missing)}")
        scaling = values["rope_scaling"]
        return LlamaConfig(**{**values, "rope_scaling": RopeScaling(**scaling) if scaling else None})


@dataclass(frozen=True)
class ModelConfig(LlamaConfig):
    """Architecture of the model to create: a published size, any field of which can be overridden."""

    size: str = "small"
    """Name of a size that gives the fields above their defaults: small, llama_7b, llama2_70b, llama3_8b, …"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scalar_head:
            raise UserError("model.scalar_head: a reward model begins with a language model; train one with reward")

    @property
    def architecture(self) -> LlamaConfig:
        """The same without the name of the size."""
        return LlamaConfig(**{field.name: getattr(self, field.name) for field in fields(LlamaConfig)})


@dataclass(frozen=True)
class ComputeConfig:
    """How the model is executed. Changes speed and memory; results only by rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and of the weights as they enter matrix products; parameters are stored in float32."""
    remat: Literal["none", "full", "dots", "attention"] = "none"
    """What the backward pass finds stored: `none` recomputes nothing; `full` keeps only the input of each layer and
    recomputes the rest; `dots` also keeps the results of matrix products with weights and the attention outputs, so
    that only cheap elementwise work is done twice; `attention` keeps the layer inputs and the attention outputs."""
    attention: Literal["auto", "xla", "blocked", "splash", "triton", "cudnn"] = "auto"
    """Implementation of attention over whole rows: `splash` (TPU), `triton` and `cudnn` (GPU), `blocked` (anywhere, a
    pair of blocks at a time), `xla` (anywhere, all scores at once). `auto` chooses, on a GPU by a short measurement at
    the start, and the run says what it chose and why. A CPU interprets splash and triton, which is slow and for tests.
    Decoding with a cache is `xla`'s in any case."""
    unroll: int = 1
    """Layers in each turn of the loop over layers. All of them: what the backward pass needs is not copied into and out
    of arrays of all layers, which on CPU takes a fifth of a step; the program compiles that much longer."""

    def __post_init__(self) -> None:
        if self.unroll < 1:
            raise UserError(f"compute.unroll: {self.unroll} must be at least 1")


ALL_LINEAR = "all-linear"
"""The pattern of `AdapterConfig.target_modules` that stands for every Linear in the blocks."""


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adaptation (LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1): a Linear's frozen matrix W acts as
    W + scale A B. The defaults are Alpaca-LoRA's."""

    rank: int = 8
    """Columns of A and rows of B (R)."""
    alpha: float = 16.0
    """Numerator of the factor on A B, which is alpha / rank."""
    dropout: float = 0.05
    """Probability with which an element of the input of A is zeroed in training, by module."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Regular expressions, each of which must match the name of a Linear, such as `q_proj`, or its path, such as
    `layers/attention/q_proj`, in full; all that match are adapted. `all-linear` stands for every Linear in the
    blocks."""
    rank_stabilized: bool = False
    """Divide alpha by sqrt(rank) instead of rank, so that large ranks learn as fast (rsLoRA, arXiv:2312.03732)."""
    dora: bool = False
    """Train the magnitude of each column of W + scale A B apart from its direction (DoRA, arXiv:2402.09353)."""
    modules_to_save: tuple[Literal["embedding", "lm_head"], ...] = ()
    """Matrices trained whole beside the factors, as new tokens need."""
    learning_rate: float | None = None
    """Peak learning rate of the factors, where `modules_to_save` need another one, `training.peak_learning_rate`; None:
    the same for both."""

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) > 0:
                raise UserError(f"lora.{name}: {getattr(self, name)} must be greater than 0")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"lora.learning_rate: {self.learning_rate} must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: {self.dropout} must be at least 0 and less than 1")
        if not self.target_modules:
            raise UserError(f"lora.target_modules: is empty; name modules such as q_proj, or {ALL_LINEAR}")
        for pattern in self.target_modules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"lora.target_modules: '{pattern}' is not a regular expression: {error}") from None

    @property
    def scale(self) -> float:
        """The factor on A B."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


def _llama(width: int, mlp_width: int, num_layers: int, num_heads: int, **changes: Any) -> LlamaConfig:
    """A size in LLaMA 1's conventions (vocabulary 32000, full multi-head attention), with `changes`."""
    shape = {"num_kv_heads": num_heads, "head_size": width // num_heads, "vocab_size": 32000, "norm_epsilon": 1e-6}
    return LlamaConfig(
        width=width, mlp_width=mlp_width, num_layers=num_layers, num_heads=num_heads, **(shape | changes)
    )


_LLAMA2: dict[str, Any] = {"norm_epsilon": 1e-5, "context_length": 4096}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_kv_heads": 8,
    "norm_epsilon": 1e-5,
    "context_length": 8192,
    "rope_base": 500000.0,
}
_LLAMA32: dict[str, Any] = _LLAMA3 | {
    "context_length": 131072,
    "rope_scaling": RopeScaling(factor=32.0),
    "tie_embeddings": True,
}
_SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "norm_epsilon": 1e-5,
    "context_length": 8192,
    "rope_base": 100000.0,
    "tie_embeddings": True,
}

SIZES: dict[str, LlamaConfig] = {
    "small": LlamaConfig(),
    "tiny": _llama(64, 176, 2, 8, vocab_size=512, context_length=512, norm_epsilon=1e-5),
    "llama_7b": _llama(4096, 11008, 32, 32),
    "llama_13b": _llama(5120, 13824, 40, 40),
    "llama_33b": _llama(6656, 17920, 60, 52),
    "llama_65b": _llama(8192, 22016, 80, 64),
    "llama2_7b": _llama(4096, 11008, 32, 32, **_LLAMA2),
    "llama2_13b": _llama(5120, 13824, 40, 40, **_LLAMA2),
    "llama2_70b": _llama(8192, 28672, 80, 64, **_LLAMA2, num_kv_heads=8),
    "llama3_8b": _llama(4096, 14336, 32, 32, **_LLAMA3),
    "llama3_70b": _llama(8192, 28672, 80, 64, **_LLAMA3),
    "llama3_405b": _llama(16384, 53248, 126, 128, **_LLAMA3),
    "llama3.2_1b": _llama(2048, 8192, 16, 32, **_LLAMA32),
    "llama3.2_3b": _llama(3072, 8192, 28, 24, **_LLAMA32),
    "tinyllama_1.1b": _llama(2048, 5632, 22, 32, num_kv_heads=4, norm_epsilon=1e-5),
    "smollm2_135m": _llama(576, 1536, 30, 9, **_SMOLLM2, num_kv_heads=3),
    "smollm2_360m": _llama(960, 2560, 32, 15, **_SMOLLM2, num_kv_heads=5),
    "smollm2_1.7b": _llama(2048, 8192, 24, 32, **(_SMOLLM2 | {"rope_base": 130000.0})),
}
"""Sizes as published. `small` is the default of the commands (a few minutes on a laptop), `tiny` that of the tests."""


def sized(size: str) -> ModelConfig:
    """The named size as a configuration section.

    Raises:
        UserError: there is no such size.
    """
    if size not in SIZES:
        raise UserError(f"model.size: unknown size '{size}'{nearest(size, SIZES)}. Known sizes: {', '.join(SIZES)}")
    return replace(ModelConfig(size=size), **vars(SIZES[size]))
