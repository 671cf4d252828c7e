#!/usr/bin/env bash
# PEFT: alpha_pattern is saved sorted by key, but the first match wins, so an adapter can load with other scales.
#
# Versions:  peft 0.21.2, transformers 5.24.0, torch 2.13.0 (CPU).
# Behaviour: with {"layers.1.self_attn.q_proj": 64, ".*q_proj": 2} the first pattern that matches decides while
#            training. adapter_config.json lists them sorted, ".*q_proj" first, so the loaded adapter scales layer 1 by
#            2 / r.
# Seen:      scale of layer 1: trained 16.0, loaded 0.5; logits differ
# Means:     the loaded model is another than the one that was trained, without a message (the same with rank_pattern
#            fails for the shapes). Write patterns that do not overlap, or compare outputs before and after saving.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$folder/venv/bin/python" -W ignore - "$folder/adapter" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATTERNS = {"layers.1.self_attn.q_proj": 64, ".*q_proj": 2}


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **SIZES))


def told(model):
    scale = model.base_model.model.model.layers[1].self_attn.q_proj.scaling["default"]
    with torch.no_grad():
        return scale, model(torch.arange(8)[None]).logits


settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], alpha_pattern=PATTERNS, init_lora_weights=False)
trained = get_peft_model(base(), settings)
trained.save_pretrained(sys.argv[1])
(before, logits), (after, others) = told(trained), told(PeftModel.from_pretrained(base(), sys.argv[1]))
print("saved:", json.loads(Path(sys.argv[1], "adapter_config.json").read_text())["alpha_pattern"])
print(f"scale of layer 1: trained {before}, loaded {after}; logits differ by up to {(logits - others).abs().max():.3f}")
assert (before, after) == (16.0, 0.5), "the order of the patterns is kept now"
PYTHON
