#!/usr/bin/env bash
# jax: compiled.cost_analysis() counts the body of a loop once, however often it runs.
#
# Versions:  jax and jaxlib 0.10.2, CPU (the compiler for TPU, libtpu 0.0.42, does the same).
# Behaviour: "flops" of 32 equal layers under lax.scan is that of one layer; written out as a Python loop, it is that of
#            32.
# Seen:      matrix products need 134217728; scan 4198402, unrolled 134348800
# Means:     a model with scanned layers, gradient accumulation or a decoding loop seems to need a small fraction of its
#            FLOPs, and a utilization computed from them is wrong by that factor. Count by formula, or multiply loop
#            bodies by their trip counts (in jaxpr: `length` of scan).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

LAYERS, WIDTH, ROWS = 32, 512, 8


def scanned(weights, x):
    return jax.lax.scan(lambda x, weight: (jnp.maximum(x @ weight, 0), None), x, weights)[0]


def unrolled(weights, x):
    for layer in range(LAYERS):
        x = jnp.maximum(x @ weights[layer], 0)
    return x


arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((LAYERS, WIDTH, WIDTH), (ROWS, WIDTH))]
needed = 2 * LAYERS * ROWS * WIDTH * WIDTH
scan, written_out = (
    jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"] for function in (scanned, unrolled)
)
print(f"matrix products need {needed}; scan {scan:.0f}, unrolled {written_out:.0f}")
assert needed <= written_out < 1.1 * needed, "an unrolled program is counted otherwise now"
assert scan < 1.1 * needed / LAYERS, "loop bodies are multiplied by their trip count now"
PYTHON
