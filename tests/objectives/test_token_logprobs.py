"""log p(target) equals what the whole logits give, by value and gradient, whatever the chunks and the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.core import placing, sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.layers import matmul
from llama_jax.objectives import cross_entropy
from llama_jax.objectives.token_logprobs import token_logprobs

B, T, D, V = 8, 24, 16, 500
RANDOM = np.random.default_rng(0)
HEAD = RANDOM.standard_normal((D, V), np.float32)
HIDDEN = RANDOM.standard_normal((B, T, D), np.float32)
TARGETS = RANDOM.integers(0, V, (B, T), np.int32)
COTANGENT = RANDOM.standard_normal((B, T), np.float32)


def unembed(head, hidden):
    return matmul(hidden, head).astype(jnp.float32)


def by_hand(head, hidden):
    every = jax.nn.log_softmax(jnp.asarray(hidden) @ head)
    return jnp.take_along_axis(every, jnp.asarray(TARGETS)[..., None], axis=-1)[..., 0]


def of_all(logprobs):
    """Values, and gradients in head and hidden states of a function of all of them that is not linear."""

    def loss(head, hidden):
        found = logprobs(head, hidden)
        return jnp.sum(COTANGENT * jnp.tanh(found / 8)), found

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("chunk", [1, 3, 8, 24])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, chunk) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda: 4 * B * V * chunk)
    assert cross_entropy.chunk_count(B, T, V) == T // chunk
    targets = jnp.asarray(TARGETS)
    (_, expected), expected_gradients = of_all(by_hand)(HEAD, HIDDEN)
    (_, found), gradients = of_all(lambda *arrays: token_logprobs(unembed, *arrays, targets))(HEAD, HIDDEN)
    assert (found.shape, found.dtype) == ((B, T), jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), gradients, expected_gradients)


@pytest.mark.parametrize("sizes", [(1, 8), (2, 2, 1, 2), (1, 2, 4), (1, 4, 2, 1, (2, 2))])
def test_the_mesh_changes_nothing(monkeypatch, sizes) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda: 4 * V * 4)
    (_, expected), expected_gradients = of_all(by_hand)(HEAD, HIDDEN)
    mesh = make_mesh(MeshConfig(*sizes))
    places = [sharding.mesh_axes(axes, mesh) for axes in (("embed", None), ("batch", "length"))]
    with jax.set_mesh(mesh):
        head, hidden, targets = (
            placing.placed(array, jax.NamedSharding(mesh, place))
            for array, place in zip((HEAD, HIDDEN, TARGETS), (*places, places[1]), strict=True)
        )
        (_, found), gradients = of_all(lambda *arrays: token_logprobs(unembed, *arrays, targets))(head, hidden)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), gradients, expected_gradients)


def test_a_frozen_head_costs_no_product() -> None:
    def flops(argnums) -> float:
        def loss(head, hidden):
            return jnp.sum(COTANGENT * token_logprobs(unembed, head, hidden, jnp.asarray(TARGETS)))

        compiled = jax.jit(jax.grad(loss, argnums=argnums)).lower(HEAD, HIDDEN).compile()
        return compiled.cost_analysis()["flops"]

    assert flops((0, 1)) - flops(1) == pytest.approx(2 * B * T * D * V, rel=0.2)


def test_logits_of_the_whole_batch_are_never_alive() -> None:
    """Batch 16 x 2048 of a 32000 vocabulary, with gradients, read from the compiled program."""

    def loss(head, hidden, targets):
        return jnp.sum(jnp.tanh(token_logprobs(unembed, head, hidden, targets)))

    shapes = [((512, 32000), jnp.float32), ((16, 2048, 512), jnp.float32), ((16, 2048), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    memory = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile().memory_analysis()
    assert 0.03 < memory.temp_size_in_bytes / (16 * 2048 * 32000 * 4) < 1 / 8


@pytest.mark.parametrize("of", [0, 1])
def test_the_gradient_of_both_results_is_that_of_the_formulas(of) -> None:
    logits = jnp.asarray(RANDOM.standard_normal((B, V), np.float32) * 3)
    targets, weights = jnp.asarray(TARGETS[:, 0]), COTANGENT[:, 0]

    def by_hand(logits):
        picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        log_z = jnp.log(jnp.exp(logits).sum(axis=-1))
        return picked - log_z, log_z

    found = jax.grad(lambda logits: jnp.sum(weights * cross_entropy.logprobs_of(logits, targets)[of]))(logits)
    expected = jax.grad(lambda logits: jnp.sum(weights * by_hand(logits)[of]))(logits)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)
