"""The architecture of a LLaMA as Hugging Face's config.json says it, read and written. Independent of tensors.

Spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) are read; the former are written,
as both versions read them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.core.json_files import JsonFields, shown
from llama_jax.model.config import LlamaConfig, RopeScaling


def architecture_from(values: Mapping[str, Any], where: str) -> LlamaConfig:
    """The architecture that a config.json describes. What it says of code (`auto_map`) is not looked at.

    Args:
        where: the file, for messages.

    Raises:
        UserError: a field is missing or makes no sense, or asks for something that LLaMA as it is here does not have.
    """
    fields = JsonFields(values, where)
    kind = fields.one_of("model_type", ("llama", "mistral"), None)
    if values.get("quantization_config") is not None:
        raise UserError(f"{where}: quantization_config is set; only weights in float32, float16 or bfloat16 are read")
    if kind == "mistral" and values.get("sliding_window", "4096, the default") is not None:
        found = shown(values.get("sliding_window"))
        raise UserError(f"{where}: sliding_window is {found}; a mistral model is read only where it is null")
    fields.one_of("hidden_act", ("silu",), "silu")
    for bias in ("attention_bias", "mlp_bias"):
        fields.one_of(bias, (False,), False)
    width, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    kv_heads = fields.whole("num_key_value_heads", heads if kind == "llama" else None)
    if heads % kv_heads:
        raise UserError(
            f"{where}: num_key_value_heads is {kv_heads}, which does not divide num_attention_heads {heads}"
        )
    if fields.values.get("head_dim") is None and width % heads:
        raise UserError(f"{where}: num_attention_heads is {heads}, which does not divide hidden_size {width}")
    head_size = fields.whole("head_dim", width // heads or None)
    if head_size % 2:
        raise UserError(f"{where}: head_dim is {head_size}; rotary positions turn pairs, so it must be even")
    rope_base, rope_scaling = _rope(fields)
    return LlamaConfig(
        vocab_size=fields.whole("vocab_size"),
        width=width,
        mlp_width=fields.whole("intermediate_size"),
        num_layers=fields.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        context_length=fields.whole("max_position_embeddings", 2048 if kind == "llama" else 131072),
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def _rope(fields: JsonFields) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies."""
    rope = fields.fields("rope_parameters")
    if not rope.values:
        rope = fields.fields("rope_scaling")
    base = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    spelling = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.one_of(spelling, ("default", "llama3"), "default" if set(rope.values) <= {"rope_theta"} else None)
    rope.one_of("partial_rotary_factor", (1.0,), 1.0)
    if kind == "default":
        return base, None
    return base, RopeScaling(
        factor=rope.number("factor"),
        low_frequency_factor=rope.number("low_freq_factor"),
        high_frequency_factor=rope.number("high_freq_factor"),
        original_context_length=rope.whole("original_max_position_embeddings"),
    )


def config_values(config: LlamaConfig, dtype: np.dtype, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    """The config.json of a model, the inverse of `architecture_from`.

    Args:
        dtype: in which transformers loads the weights if told `auto`.
        bos_id: id that opens a text; None where no tokenizer is known.
        eos_id: id that ends a text.
    """
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": str(dtype),
    }
