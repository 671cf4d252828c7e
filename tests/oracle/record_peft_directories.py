"""Record what PEFT writes for adapters of the small LLaMAs, and the logits of base and adapter together, into
`peft_directories.npz`.

pip install torch transformers peft && python tests/oracle/record_peft_directories.py
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from record_transformers import small_llama
from small_llamas import TOKENS, weight

TIED = {"ensure_weight_tying": True}
ADAPTERS = {
    "lora": ("grouped_query", {"target_modules": ["q_proj", "v_proj"]}),
    "every_linear": (
        "multi_head",
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6},
            "alpha_pattern": {"v_proj": 3, "^model.layers.1.mlp.up_proj": 5},
        },
    ),
    "dora": (
        "multi_head",
        {"target_modules": ["o_proj", "gate_proj"], "use_dora": True, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "one_layer": ("tied", {"target_modules": ["q_proj", "down_proj"], "use_dora": True, "layers_to_transform": [1]}),
    "tied_embedding": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], **TIED}),
    "tied_head": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], **TIED}),
    "tied_both": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], **TIED}),
    "full_names": ("multi_head", {"target_modules": ["q_proj"], "modules_to_save": ["model.embed_tokens", "lm_head"]}),
    "untied": ("multi_head", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], **TIED}),
}
"""Base and settings of each adapter, beside rank 4 and alpha 8."""


def adapted(base: str, settings: dict) -> peft.PeftModel:
    """A model whose adapter is not the identity: each of its parameters is a formula of its name."""
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(small_llama(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                values = torch.from_numpy(weight(name, tuple(parameter.shape)))
                parameter.copy_(parameter * values if "magnitude" in name else values)
    return model


def recorded(base: str, settings: dict) -> dict[str, np.ndarray]:
    """The files PEFT writes, as bytes, and float32 logits [1, 48, V]."""
    model = adapted(base, settings)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        files = {name: np.frombuffer((Path(folder) / name).read_bytes(), np.uint8) for name in FILES}
        return files | {"logits": model(torch.from_numpy(TOKENS[:1])).logits.numpy()}


FILES = ("adapter_config.json", "adapter_model.safetensors")

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arrays = {
        f"{name}/{part}": array
        for name, (base, settings) in ADAPTERS.items()
        for part, array in recorded(base, settings).items()
    }
    target = Path(__file__).with_name("peft_directories.npz")
    np.savez_compressed(target, **arrays)
    print(f"{target}: peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    for name in ADAPTERS:
        print(name, float(np.abs(arrays[f"{name}/logits"]).max()))
