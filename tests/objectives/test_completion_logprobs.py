"""log p(target) where it is wanted equals that of all positions, by value and gradient; the rest costs nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import some

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.layers import matmul
from llama_jax.objectives.completion_logprobs import completion_logprobs
from llama_jax.objectives.token_logprobs import token_logprobs

B, T, D, V = 8, 24, 16, 500
RANDOM = np.random.default_rng(0)
HEAD = RANDOM.standard_normal((D, V), np.float32)
HIDDEN = RANDOM.standard_normal((B, T, D), np.float32)
TARGETS = RANDOM.integers(0, V, (B, T), np.int32)
COTANGENT = RANDOM.standard_normal((B, T), np.float32)
WANTED = RANDOM.random((B, T)) < [[0.5], [0.0], [1.0], [0.1], [0.5], [0.9], [0.0], [0.5]]


def unembed(head, hidden):
    return matmul(hidden, head).astype(jnp.float32)


def of_wanted(frozen: bool):
    def loss(head, hidden):
        found = completion_logprobs(unembed, head, hidden, jnp.asarray(TARGETS), jnp.asarray(WANTED))
        return jnp.sum(COTANGENT * jnp.tanh(found / 8)), found

    return jax.jit(jax.value_and_grad(loss, argnums=(1,) if frozen else (0, 1), has_aux=True))


def of_all(head, hidden):
    found = jnp.where(WANTED, token_logprobs(unembed, head, hidden, jnp.asarray(TARGETS)), 0.0)
    return jnp.sum(COTANGENT * jnp.tanh(found / 8)), found


@pytest.mark.parametrize("shape", some([(1,), (2, 2, 1, 2), (2, 2, 2, 1), (1, 4, 2, 1)], [(2, 2, 2, 1)]))
@pytest.mark.parametrize("frozen", [True, False])
def test_values_and_gradients_are_those_of_all_positions(shape, frozen) -> None:
    (_, values), gradients = jax.jit(jax.value_and_grad(of_all, argnums=(0, 1), has_aux=True))(HEAD, HIDDEN)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, sharding.mesh_axes(("batch", "length", None)))
        (_, found), by_input = of_wanted(frozen)(HEAD, jax.device_put(HIDDEN, place))
    np.testing.assert_allclose(found, values, atol=2e-6)
    assert not np.asarray(found)[~WANTED].any()
    for a, b in zip(by_input, gradients[1:] if frozen else gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_frozen_head_is_multiplied_twice_by_what_is_wanted_and_no_more() -> None:
    """The products in the compiled program: logits, and their gradient. The loop over chunks is counted once."""
    compiled = of_wanted(True).lower(HEAD, HIDDEN).compile()
    chunk = 2 * (B * T // 8) * D * V
    assert compiled.cost_analysis()["flops"] == pytest.approx(2 * chunk, rel=0.2)
