#!/usr/bin/env bash
# XLA for CPU: the cosines of rotary positions, computed once in a program, are computed again in every layer and head.
#
# Versions:  jax 0.10.2 (Python 3.11) or 0.12.0.1 (newer), CPU.
# Behaviour: the fusions that turn queries each take cosine and sine of the angles in, for each element of each head,
#            though these are the same for all layers and heads; jax.lax.optimization_barrier around them changes
#            nothing. In a loop over layers (jax.lax.scan) they are inputs of the loop and computed once.
# Seen:      1 cosine in the program, 4 compiled of 4 layers (jax 0.12: 8), 4 (8) behind a barrier; 1 in a loop
# Means:     layers that are written out, and not scanned, pay for transcendental functions 2 x heads x layers times. Of
#            a training step of 4 layers with 8 heads of 32 on AVX-512 that was 8 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
newer=$("$folder/venv/bin/python" -c 'import sys; print(int(sys.version_info >= (3, 12)))')
"$folder/venv/bin/pip" install --quiet "jax==$([ "$newer" = 1 ] && echo 0.12.0.1 || echo 0.10.2)"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re

import jax
import jax.numpy as jnp

LAYERS, HEADS, SIZE = 4, 8, 32


def angles(positions):
    turned = positions[:, :, None] * 10000.0 ** -(jnp.arange(SIZE // 2) / (SIZE // 2))
    return jnp.cos(turned)[:, :, None], jnp.sin(turned)[:, :, None]


def layer(x, weight, cosine, sine):
    first, second = jnp.split((x @ weight).reshape(*x.shape[:2], HEADS, SIZE), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    turned = jnp.moveaxis(turned, 1, 2)
    mixed = jnp.einsum("bnts,bnsd->bntd", jnp.einsum("bntd,bnsd->bnts", turned, turned), turned)
    return jnp.moveaxis(mixed, 1, 2).reshape(x.shape)


def written_out(positions, x, weights, barrier=False):
    rotation = angles(positions)
    rotation = jax.lax.optimization_barrier(rotation) if barrier else rotation
    for weight in weights:
        x = layer(x, weight, *rotation)
    return x


def scanned(positions, x, weights):
    rotation = angles(positions)
    return jax.lax.scan(lambda x, weight: (layer(x, weight, *rotation), None), x, weights)[0]


def cosines(function):
    lowered = jax.jit(function).lower(positions, x, weights)
    return lowered.as_text().count("stablehlo.cosine"), len(re.findall(r" cosine\(", lowered.compile().as_text()))


positions, width = jnp.tile(jnp.arange(96.0), (32, 1)), HEADS * SIZE
x, weights = jnp.ones((32, 96, width)), jnp.ones((LAYERS, width, width))
plain, behind, looped = map(cosines, (written_out, lambda *a: written_out(*a, barrier=True), scanned))
print(f"jax {jax.__version__}: cosines asked for and compiled: {plain}, behind a barrier {behind}, in a loop {looped}")
assert plain[0] == behind[0] == looped[0] == 1
assert plain[1] >= LAYERS and behind[1] >= LAYERS, "they are computed once now"
assert looped[1] == 1
PYTHON
