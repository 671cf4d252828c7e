#!/usr/bin/env bash
# transformers: a generation_config.json without eos_token_id hides that of config.json, and generation has no end.
#
# Versions:  transformers 5.24.0.
# Behaviour: where a model has a generation_config.json it is taken as it is. If it sets only a temperature, say, its
#            eos_token_id is None, although config.json names one; without the file config.json's is taken. A model
#            that is loaded with from_pretrained takes the same, and generate() then goes on to the largest length.
# Seen:      config.json [2, 7], generation_config.json without it: None; after the file is removed: [2, 7]
# Means:     whoever writes a generation_config.json for its sampling settings must repeat eos_token_id in it. If a
#            model runs on past its end, look there first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from pathlib import Path

from transformers import AutoConfig, GenerationConfig


def ends() -> object:
    """As PreTrainedModel.from_pretrained takes it."""
    try:
        return GenerationConfig.from_pretrained("model").eos_token_id
    except OSError:
        return GenerationConfig.from_pretrained(
            "model", config_file_name="config.json", _from_model_config=True
        ).eos_token_id


Path("model").mkdir()
Path("model/config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [2, 7]}))
Path("model/generation_config.json").write_text(json.dumps({"temperature": 0.6, "do_sample": True}))
named, hidden = AutoConfig.from_pretrained("model").eos_token_id, ends()
Path("model/generation_config.json").unlink()
print(f"config.json {named}, generation_config.json without it: {hidden}; after the file is removed: {ends()}")
assert named == ends() == [2, 7]
assert hidden is None, "config.json's eos_token_id is taken now"
PYTHON
