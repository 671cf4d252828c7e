"""Properties of the network: causal, blind across packed documents, the same however it is executed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import some

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.cache import empty_cache
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import LanguageModel, language_model, unstacked

CONFIG = dataclasses.replace(SIZES["tiny"], num_kv_heads=2, vocab_size=500)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return language_model(CONFIG, ComputeConfig())


@pytest.fixture(scope="module")
def params(model: LanguageModel):
    return jax.jit(model.init)(jax.random.key(0))


def test_hidden_depends_on_no_later_token_and_no_other_document(model, params, packed_batch) -> None:
    """By gradients: the output at a position, differentiated by the embedding of each token."""
    batch = packed_batch(1, 24, CONFIG.vocab_size)
    table = params["embedding"]["table"]

    def output(rows: jax.Array, position: jax.Array) -> jax.Array:
        # Token i is given row i of a table of its own, so that the gradient tells positions apart.
        own = params | {"embedding": {"table": table.at[:24].set(rows)}}
        hidden = model.hidden(own, jnp.arange(24)[None], batch.positions, batch.segment_ids)
        return jnp.sum(hidden[0, position] * jnp.arange(CONFIG.width))

    influence = jax.jit(jax.vmap(jax.grad(output), in_axes=(None, 0)))(table[batch.tokens[0]], jnp.arange(24))
    touched = np.abs(influence).max(axis=-1) > 0
    position = np.arange(24)
    segment = np.asarray(batch.segment_ids[0])
    expected = (position[None] <= position[:, None]) & (segment[None] == segment[:, None])
    np.testing.assert_array_equal(touched, expected)


def test_packed_documents_equal_separate_ones(model, params, packed_batch) -> None:
    batch = packed_batch(2, 24, CONFIG.vocab_size)
    packed = jax.jit(model.hidden)(params, batch.tokens, batch.positions, batch.segment_ids)
    for segment in (1, 2):
        places = np.flatnonzero(np.asarray(batch.segment_ids[0]) == segment)
        alone = jax.jit(model.hidden)(params, batch.tokens[:, places])
        np.testing.assert_allclose(alone, packed[:, places], atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    some(
        [{"remat": "full"}, {"remat": "dots"}, {"remat": "attention"}, {"unroll": 2}, {"remat": "dots", "unroll": 8}],
        [{"remat": "dots", "unroll": 2}],
    ),
    ids=str,
)
def test_what_is_stored_and_unrolled_changes_no_gradient(model, params, packed_batch, changes) -> None:
    batch = packed_batch(2, 24, CONFIG.vocab_size)

    def gradient(which: LanguageModel):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(which.hidden(p, batch.tokens)))))(params)

    other = language_model(CONFIG, ComputeConfig(**changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), gradient(other), gradient(model))


def test_padding_of_the_vocabulary_has_no_probability(model, params) -> None:
    hidden = jax.random.normal(jax.random.key(1), (3, CONFIG.width))
    logits = model.unembed(model.head(params), hidden)
    assert logits.shape[-1] == 512
    assert float(jax.nn.softmax(logits)[:, 500:].max()) == 0.0


def test_bfloat16_stays_near_float32(model, params, packed_batch) -> None:
    tokens = packed_batch(2, 24, CONFIG.vocab_size).tokens
    coarse = language_model(CONFIG, ComputeConfig(dtype="bfloat16"))
    hidden = jax.jit(coarse.hidden)(params, tokens)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(jnp.float32), jax.jit(model.hidden)(params, tokens), atol=0.1)


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "full"])
def test_no_policy_keeps_a_weight_for_the_backward_pass(remat) -> None:
    """Cast or gathered weights of all layers, kept, would be the whole model once more."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    model = language_model(CONFIG, ComputeConfig(dtype="bfloat16", remat=remat))
    with jax.set_mesh(mesh):
        shapes = model.shapes()

        def kept(params: dict, tokens: jax.Array) -> dict:
            return jax.vjp(lambda params: model.logits(params, tokens), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(kept, shapes, jax.ShapeDtypeStruct((8, 32), jnp.int32)))
    weights = {leaf.shape for leaf in jax.tree.leaves(shapes["layers"]) if leaf.ndim == 3}
    assert len(weights) > 2 and any(leaf.shape[0] == CONFIG.num_layers for leaf in leaves)
    assert [leaf for leaf in leaves if leaf.shape in weights and leaf.dtype == jnp.bfloat16] == []


def test_of_the_layers_that_decode_one_is_lowered(model, params) -> None:
    lowered = jax.jit(model.decode).lower(
        unstacked(params),
        jnp.zeros((2, 3), jnp.int32),
        empty_cache(CONFIG, 2, 8, jnp.dtype("float32")),
        jnp.zeros(2, jnp.int32),
    )
    text = lowered.as_text()
    assert text.count("call @_decoded_layer(") == CONFIG.num_layers > 1
    assert text.count("func.func private @_decoded_layer") == 1
