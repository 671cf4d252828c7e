#!/usr/bin/env bash
# transformers: where a config.json has both spellings, the legacy rope_scaling and rope_theta beat rope_parameters.
#
# Versions:  transformers 5.24.0.
# Behaviour: LlamaConfig.from_dict with rope_parameters (the spelling of version 5) and rope_scaling (of version 4)
#            takes the type, the factor and the base from the legacy fields; nothing is logged.
# Seen:      {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 10000.0}
# Means:     a file that carries both, so that old and new versions can read it, must be edited in both places: whoever
#            changes rope_parameters alone still gets the old rotary positions, and a converter that reads
#            rope_parameters first builds another model than transformers does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from transformers import LlamaConfig

NEW = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODEL = {"model_type": "llama", "max_position_embeddings": 131072, "rope_parameters": NEW}
LEGACY = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 10000.0}
alone = LlamaConfig.from_dict(MODEL).rope_parameters
both = LlamaConfig.from_dict({**MODEL, **LEGACY}).rope_parameters
print("rope_parameters alone:", alone)
print("with legacy fields beside it:", both)
assert alone == NEW, "rope_parameters alone are read otherwise now"
assert both == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, "the legacy fields no longer win"
PYTHON
