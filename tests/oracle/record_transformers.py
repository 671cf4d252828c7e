"""Record what Hugging Face transformers computes for the small LLaMAs, into `transformers_logits.npz`.

pip install torch transformers && python tests/oracle/record_transformers.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from small_llamas import BASE, SHAPES, TOKENS, weight


def small_llama(name: str) -> transformers.LlamaForCausalLM:
    """One of the models, eager attention."""
    shape = BASE | SHAPES[name]
    scaling = shape["rope_scaling"]
    rope = {"rope_type": "default", "rope_theta": shape["rope_base"]}
    if scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling["factor"],
            "low_freq_factor": scaling["low_frequency_factor"],
            "high_freq_factor": scaling["high_frequency_factor"],
            "original_max_position_embeddings": scaling["original_context_length"],
        }
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["width"],
        intermediate_size=shape["mlp_width"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        head_dim=shape["head_size"],
        max_position_embeddings=shape["context_length"],
        rms_norm_eps=shape["norm_epsilon"],
        tie_word_embeddings=shape["tie_embeddings"],
        rope_parameters=rope,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def logits_of(name: str) -> np.ndarray:
    """Float32 logits [2, 48, V] of one model."""
    with torch.no_grad():
        return small_llama(name)(torch.from_numpy(TOKENS)).logits.numpy()


if __name__ == "__main__":
    recorded = {name: logits_of(name) for name in SHAPES}
    target = Path(__file__).with_name("transformers_logits.npz")
    np.savez_compressed(target, **recorded)
    print(f"{target}: transformers {transformers.__version__}, torch {torch.__version__}")
    for name, logits in recorded.items():
        print(name, logits.shape, logits.dtype, float(np.abs(logits).max()))
