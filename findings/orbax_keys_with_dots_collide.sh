#!/usr/bin/env bash
# orbax: a key with a dot and a nested path of the same spelling share one array on disk, and one of the two is lost.
#
# Versions:  orbax-checkpoint 0.12.8, jax 0.10.2.
# Behaviour: {"layer": {"kernel": 0}, "layer.kernel": 1} saves and restores without an error or a warning, and both
#            leaves come back with the value of one of them, not always of the same one. Names of arrays on disk join
#            the path with dots, and a dot inside a key is not escaped.
# Seen:      saved 0.0 and 1.0, restored 0.0 and 0.0 (other times 1.0 and 1.0)
# Means:     flat dictionaries such as PyTorch state dicts ("model.layers.0.weight") are safe alone, but not beside a
#            nested tree of the same names. Use another separator, or nest all keys, before saving.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoints" <<'PYTHON'
import logging
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

logging.disable(logging.WARNING)
saved = {"layer": {"kernel": jnp.zeros(3)}, "layer.kernel": jnp.ones(3)}
with ocp.CheckpointManager(sys.argv[1]) as manager:
    manager.save(0, args=ocp.args.PyTreeSave(saved))
    manager.wait_until_finished()
    arguments = ocp.checkpoint_utils.construct_restore_args(saved)
    restored = manager.restore(0, args=ocp.args.PyTreeRestore(saved, restore_args=arguments))
values = [float(leaf[0]) for leaf in (restored["layer"]["kernel"], restored["layer.kernel"])]
print(f"saved 0.0 and 1.0, restored {values[0]} and {values[1]}")
assert values in ([0.0, 0.0], [1.0, 1.0]), "both keys survive now"
PYTHON
