"""Small LLaMAs whose weights come from a formula, so that both sides of a comparison can make them."""

import numpy as np

SHAPES = {
    "multi_head": {},
    "grouped_query": {"num_kv_heads": 2},
    "tied": {"tie_embeddings": True},
    "llama3.1_rope": {
        "num_kv_heads": 2,
        "rope_base": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_frequency_factor": 1.0,
            "high_frequency_factor": 4.0,
            "original_context_length": 64,
        },
    },
}
"""What each model changes in `BASE`."""

BASE = {
    "vocab_size": 97,
    "width": 32,
    "mlp_width": 56,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_size": 8,
    "context_length": 128,
    "rope_base": 10000.0,
    "rope_scaling": None,
    "norm_epsilon": 1e-5,
    "tie_embeddings": False,
    "vocab_multiple": 128,
}
"""Fields of `LlamaConfig`."""

TOKENS = (np.arange(2 * 48).reshape(2, 48) ** 2 * 31 + 7) % BASE["vocab_size"]
"""Ids to predict from, [2, 48]."""


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weight of a transformers name: a sine of large arguments, different for each name."""
    phase = sum(ord(letter) * (place + 1) for place, letter in enumerate(name))
    values = np.sin(np.arange(int(np.prod(shape)), dtype=np.float64) * 12.9898 + phase) * 0.3
    if len(shape) == 1:
        values = 1.0 + values
    return values.reshape(shape).astype(np.float32)
