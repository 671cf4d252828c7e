#!/usr/bin/env bash
# XLA on CPU: bfloat16 weights that a loop reads are all converted to float32 first, so they need more memory, not less.
#
# Versions:  jax and jaxlib 0.10.2, CPU.
# Behaviour: a scan over stacked weights [32, 512, 512] needs hardly any memory beside its arguments in float32. In
#            bfloat16 the arguments are half as large, but the program holds a float32 copy of all layers during the
#            loop.
# Seen:      float32 34 MB + 1 MB temporary, bfloat16 17 MB + 35 MB temporary; a product of one row with a 4096 x 11008
#            weight took 10 ms in float32 and 181 ms in bfloat16 on a quiet machine
# Means:     casting a model to bfloat16 to make it fit a laptop makes inference three times the size of the weights,
#            and slower. On CPU keep weights in float32, or convert layer by layer outside the loop.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import time

import jax
import jax.numpy as jnp


def forward(weights, x):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]


def milliseconds(dtype):
    product, x, weight = jax.jit(jnp.matmul), jnp.ones((1, 4096), dtype), jnp.ones((4096, 11008), dtype)
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        product(x, weight).block_until_ready()
        taken.append(time.perf_counter() - start)
    return min(taken) * 1e3


temporary, size = {}, {}
for dtype in ("float32", "bfloat16"):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((32, 512, 512), (8, 512))]
    memory = jax.jit(forward).lower(*arguments).compile().memory_analysis()
    size[dtype], temporary[dtype] = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    print(f"{dtype}: {size[dtype] / 1e6:.0f} MB of arguments + {temporary[dtype] / 1e6:.0f} MB temporary;", end=" ")
    print(f"a product of one row: {milliseconds(dtype):.0f} ms")
assert temporary["float32"] < 0.1 * size["float32"], "float32 needs temporary memory now"
assert temporary["bfloat16"] > 1.9 * size["bfloat16"], "bfloat16 weights are no longer widened all at once"
PYTHON
