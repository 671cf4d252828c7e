"""Adapters of the small LLaMA `grouped_query` whose factors come from a formula, so that both sides can make them."""

import numpy as np
from small_llamas import weight

MODULES = {
    "attention/q_proj": "self_attn.q_proj",
    "attention/k_proj": "self_attn.k_proj",
    "attention/v_proj": "self_attn.v_proj",
    "attention/o_proj": "self_attn.o_proj",
    "mlp/gate_proj": "mlp.gate_proj",
    "mlp/up_proj": "mlp.up_proj",
    "mlp/down_proj": "mlp.down_proj",
}
"""Our paths below a layer, and those of transformers."""

ADAPTERS = {
    "lora": {"modules": ["attention/q_proj", "attention/v_proj"], "rank": 4, "alpha": 8.0},
    "rslora": {"modules": list(MODULES), "rank": 8, "alpha": 6.0, "rank_stabilized": True},
    "dora": {"modules": list(MODULES), "rank": 4, "alpha": 8.0, "dora": True},
}


def factors(module: str, layer: int, inputs: int, outputs: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A [I, R] and B [R, O] of a module of ours."""
    name = f"{layer}.{module}"
    return weight(f"{name}.a", (inputs, rank)), weight(f"{name}.b", (rank, outputs)) * np.float32(0.05)


def stretch(module: str, layer: int, outputs: int) -> np.ndarray:
    """Factors [O] on the lengths of the columns of the base, which give DoRA's magnitudes."""
    return weight(f"{layer}.{module}.magnitude", (outputs,))
