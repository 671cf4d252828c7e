#!/usr/bin/env bash
# orbax: restoring a key that the checkpoint does not have raises nothing when partial_restore is on.
#
# Versions:  orbax-checkpoint 0.12.8, jax 0.10.2.
# Behaviour: PyTreeRestore(..., partial_restore=True) with a target of two arrays, of which one was saved, returns both:
#            the saved one as an array, the other as the jax.ShapeDtypeStruct of the target.
# Seen:      {'bias': 'ShapeDtypeStruct', 'kernel': 'ArrayImpl'}
# Means:     a renamed or misspelled parameter is noticed only where it is first used, if at all: code that maps over
#            the tree with functions of shapes and dtypes alone runs on. After a partial restore, look for leaves that
#            are still ShapeDtypeStruct. Without partial_restore, orbax names the key that is missing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder/checkpoints" <<'PYTHON'
import logging
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

logging.disable(logging.WARNING)
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
target = {name: jax.ShapeDtypeStruct((4,), jnp.float32, sharding=place) for name in ("kernel", "bias")}
arguments = ocp.checkpoint_utils.construct_restore_args(target)
with ocp.CheckpointManager(sys.argv[1]) as manager:
    manager.save(0, args=ocp.args.PyTreeSave({"kernel": jnp.arange(4.0)}))
    manager.wait_until_finished()
    partial = ocp.args.PyTreeRestore(target, restore_args=arguments, partial_restore=True)
    seen = {name: type(leaf).__name__ for name, leaf in manager.restore(0, args=partial).items()}
    try:
        manager.restore(0, args=ocp.args.PyTreeRestore(target, restore_args=arguments))
        whole = "nothing raised"
    except ValueError as error:
        whole = f"ValueError: {str(error).splitlines()[0]}"
print(seen)
print("without partial_restore:", whole)
assert seen == {"bias": "ShapeDtypeStruct", "kernel": "ArrayImpl"}, "partial_restore has changed"
assert whole.startswith("ValueError"), "a whole restore no longer names what is missing"
PYTHON
