"""The chunked cross-entropy equals the plain one, by value and gradient, and never holds all logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import some

from llama_jax.core import placing, sharding, tree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.layers import matmul
from llama_jax.model.llama import language_model
from llama_jax.objectives import cross_entropy
from llama_jax.objectives.cross_entropy import summed_cross_entropy
from llama_jax.objectives.next_token import next_token
from llama_jax.objectives.token_logprobs import token_logprobs

CONFIG = dataclasses.replace(SIZES["tiny"], vocab_size=500, num_layers=1)
KEY = jax.random.key(0)


def hidden_of(model, params, batch):
    return model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)


def plain(model, z_loss):
    """By `token_logprobs`, and the whole logits at once for log(Z)."""

    def objective(params, batch):
        head, hidden = model.head(params), hidden_of(model, params, batch)
        nll = -token_logprobs(model.unembed, head, hidden, batch.targets)
        log_z = jax.nn.logsumexp(model.unembed(head, hidden), axis=-1)
        return jnp.sum((nll + z_loss * log_z**2) * batch.loss_weights) / batch.normalizer

    return objective


@pytest.mark.parametrize("tied", some([False, True], [True]))
@pytest.mark.parametrize("z_loss", some([0.0, 0.01], [0.01]))
def test_chunks_change_neither_loss_nor_gradients(monkeypatch, packed_batch, tied, z_loss) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda: 4 * 4 * 512 * 8)
    model = language_model(dataclasses.replace(CONFIG, tie_embeddings=tied), ComputeConfig())
    params = jax.jit(model.init)(KEY)
    batch = packed_batch(8, 64, 500)
    chunked = jax.jit(jax.value_and_grad(lambda p: next_token(model, z_loss)(p, {}, batch, KEY)[0]))(params)
    whole = jax.jit(jax.value_and_grad(lambda p: plain(model, z_loss)(p, batch)))(params)
    np.testing.assert_allclose(chunked[0], whole[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max()), chunked[1], whole[1])


@pytest.mark.parametrize(
    "shape", some([(1, 8), (2, 2, 1, 2), (2, 2, 2, 1), (1, 4, 2, 1, (2, 2))], [(1, 4, 2, 1, (2, 2))])
)
def test_sharded_loss_and_gradients_equal_unsharded(monkeypatch, packed_batch, shape) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda: 4 * 512 * 16)
    model = language_model(CONFIG, ComputeConfig())
    batch = packed_batch(8, 64, 500)
    gradient = jax.value_and_grad(lambda p, b: next_token(model, 0.01)(p, {}, b, KEY)[0])
    params = jax.jit(model.init)(KEY)
    expected = jax.jit(gradient)(params, batch)
    mesh = make_mesh(MeshConfig(*shape))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings_of(mesh, model.shapes(), model.axes))
        rows = {name: np.asarray(leaf) for name, leaf in vars(batch).items() if name != "normalizer"}
        found = jax.jit(gradient)(placed, placing.place_batch(mesh, TokenBatch, rows, 8))
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), jax.device_get(found[1]), expected[1])


@pytest.mark.slow
def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(packed_batch) -> None:
    model = language_model(CONFIG, ComputeConfig())
    params = jax.jit(model.init)(KEY)
    params["lm_head"]["kernel"] = jnp.zeros_like(params["lm_head"]["kernel"])
    _, metrics = next_token(model)(params, {}, packed_batch(2, 24, 500), KEY)
    assert float(metrics["loss"]) == pytest.approx(math.log(500), rel=1e-6)


def test_frozen_head_gets_no_gradient_product(packed_batch) -> None:
    """With the head frozen, the compiled gradient has fewer FLOPs by the product for the head's gradient."""
    model = language_model(CONFIG, ComputeConfig())
    params = jax.jit(model.init)(KEY)
    batch = packed_batch(8, 64, 500)
    trainable, frozen = tree.split(params, lambda path: not path.startswith("lm_head"))

    def flops(trainable, frozen) -> float:
        compiled = jax.jit(jax.grad(lambda t: next_token(model)(t, frozen, batch, KEY)[0])).lower(trainable).compile()
        return compiled.cost_analysis()["flops"]

    saved = flops(params, {}) - flops(trainable, frozen)
    assert saved == pytest.approx(2 * 8 * 64 * CONFIG.width * 512, rel=0.2)


def test_loss_of_a_32000_vocabulary_needs_under_an_eighth_of_its_logits() -> None:
    """Batch 16 x 2048: the temporary memory of loss and gradients by themselves, read from the compiled program."""

    def unembed(head, hidden):
        return matmul(hidden, head).astype(jnp.float32)

    def loss(head, hidden, targets, weights):
        return summed_cross_entropy(unembed, 0.0, head, hidden, targets, weights)[0]

    shapes = [(512, 32000), (16, 2048, 512), (16, 2048), (16, 2048)]
    dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    memory = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile().memory_analysis()
    share = memory.temp_size_in_bytes / (16 * 2048 * 32000 * 4)
    assert 0.03 < share < 1 / 8, f"{share:.4f} of the full float32 logits"
