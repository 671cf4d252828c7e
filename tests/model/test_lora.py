"""Adapters: what is adapted, what is trained, that nothing changes at first, and that every way to apply one agrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted_models import CONFIG, EVERY_LINEAR, MODEL, adapter, base
from sweeps import some

from llama_jax.core import placing, sharding, tree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.inference.layout import decoding_params
from llama_jax.model import lora, low_rank, quantized
from llama_jax.model.cache import empty_cache
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.model.low_rank import dropped
from llama_jax.objectives.next_token import next_token

KINDS = {
    "lora": EVERY_LINEAR,
    "rslora": dataclasses.replace(EVERY_LINEAR, rank_stabilized=True, rank=4),
    "dora": dataclasses.replace(EVERY_LINEAR, dora=True),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (4, 16)))


@pytest.fixture(scope="module")
def params():
    return base()


def logits(params, tokens=TOKENS):
    return np.asarray(jax.jit(MODEL.logits)(params, tokens))


@pytest.mark.parametrize(
    ("rank", "targets", "expected"),
    [(8, ("q_proj", "v_proj"), 4_194_304), (16, ("[qkvo]_proj",), 16_777_216), (1, ("all-linear",), 2_498_560)],
)
def test_number_of_trained_parameters_of_7b(rank, targets, expected) -> None:
    """The first two as PEFT prints them for Alpaca-LoRA; the third is 32 * (8 * 4096 + 3 * (4096 + 11008))."""
    config = AdapterConfig(rank=rank, target_modules=targets)
    shapes = language_model(SIZES["llama_7b"], ComputeConfig()).shapes()
    fresh = jax.eval_shape(lambda base: lora.init_adapter(config, base, jax.random.key(0)), shapes)
    trained, frozen = tree.split(lora.with_adapter(shapes, fresh), lora.is_trainable(config))
    assert tree.size(trained) == expected
    assert {path.rsplit("/", 1)[-1] for path in tree.flatten(frozen.get("lora"))} == {"scale"}


@pytest.mark.parametrize("kind", some(KINDS, ("lora", "dora")))
def test_a_fresh_adapter_changes_nothing(params, kind) -> None:
    fresh = lora.init_adapter(KINDS[kind], params, jax.random.key(1))
    leaves = tree.flatten(fresh)
    assert not any(np.any(leaf) for path, leaf in leaves.items() if path.endswith("/b"))
    adapted = logits(lora.with_adapter(params, fresh))
    if kind == "dora":
        np.testing.assert_allclose(adapted, logits(params), atol=1e-5, rtol=0)
    else:
        np.testing.assert_array_equal(adapted, logits(params))


def test_a_is_drawn_as_peft_draws_it_and_differs_between_modules(params) -> None:
    layers = lora.init_adapter(EVERY_LINEAR, params, jax.random.key(1))["layers"]
    for path, leaf in tree.flatten(layers).items():
        if path.endswith("/a"):
            bound = leaf.shape[1] ** -0.5
            assert 0.9 * bound < np.abs(leaf).max() <= bound
            np.testing.assert_allclose(np.std(leaf), bound / 3**0.5, rtol=0.05)
    query, output = (layers["attention"][name]["a"] for name in ("q_proj", "o_proj"))
    assert np.abs(query - output).max() > 0.01
    assert np.abs(query[0] - query[1]).max() > 0.01


def test_targets_match_names_and_paths_in_full(params) -> None:
    def chosen(*patterns: str) -> list[str]:
        return [path[7:] for path in lora.target_paths(AdapterConfig(target_modules=patterns), params)]

    assert chosen("q_proj", "v_proj") == ["attention/q_proj", "attention/v_proj"]
    assert chosen("layers/mlp/.*") == ["mlp/down_proj", "mlp/gate_proj", "mlp/up_proj"]
    assert len(chosen("all-linear")) == 7
    with pytest.raises(UserError, match="'q' matches no Linear"):
        chosen("q_proj", "q")
    with pytest.raises(UserError, match="'v_prj' matches no Linear; did you mean 'v_proj'"):
        chosen("v_prj")
    with pytest.raises(UserError, match="not a regular expression"):
        AdapterConfig(target_modules=("(q_proj",))


def test_a_tied_model_has_no_head_to_save() -> None:
    shapes = language_model(dataclasses.replace(CONFIG, tie_embeddings=True), ComputeConfig()).shapes()
    with pytest.raises(UserError, match="the model has no lm_head"):
        lora.target_paths(AdapterConfig(modules_to_save=("lm_head",)), shapes)


@pytest.mark.parametrize(
    ("kind", "storage"),
    [
        ("lora", "float32"),
        pytest.param("dora", "float32", marks=pytest.mark.slow),
        pytest.param("lora", "nf4", marks=pytest.mark.slow),
        pytest.param("dora", "nf4", marks=pytest.mark.slow),
    ],
)
def test_only_the_adapter_and_the_modules_to_save_have_gradients(params, packed_batch, kind, storage) -> None:
    config = dataclasses.replace(KINDS[kind], modules_to_save=("lm_head",))
    stored = quantized.store_as(params, storage)
    trainable, frozen = lora.partition(lora.with_adapter(stored, adapter(config, stored)), config)
    leaves = {"a", "b"} | ({"magnitude"} if config.dora else set())
    expected = {f"{path}/{leaf}" for path in lora.target_paths(config, params) for leaf in leaves}
    assert set(tree.flatten(trainable)) == {f"lora/{path}" for path in expected} | {"lm_head/kernel"}
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    objective = next_token(MODEL)
    gradients, _ = jax.jit(jax.grad(objective, has_aux=True))(trainable, frozen, packed_batch(2, 16, 500), None)
    for path, gradient in tree.flatten(gradients).items():
        assert np.abs(gradient).max() > 0, path


def plain(kernel: np.ndarray, factors: dict) -> np.ndarray:
    """The matrix of an adapted Linear in float64, by the formulas of the papers."""
    a, b, scale = (np.asarray(factors[name], np.float64) for name in ("a", "b", "scale"))
    matrix = kernel.astype(np.float64) + scale * a @ b
    if "magnitude" in factors:
        matrix *= np.asarray(factors["magnitude"], np.float64) / np.linalg.norm(matrix, axis=0)
    return matrix


@pytest.mark.parametrize("kind", some(KINDS, ("dora",)))
def test_an_adapted_model_is_the_model_with_the_matrices_of_the_papers(params, kind) -> None:
    own = adapter(KINDS[kind], params)
    leaves, factors = tree.flatten(params), tree.flatten(own)
    for path in lora.target_paths(KINDS[kind], params):
        of_module = {key.rsplit("/", 1)[1]: leaf for key, leaf in factors.items() if key.startswith(f"{path}/")}
        layers = [
            plain(np.asarray(leaves[f"{path}/kernel"][layer]), {name: leaf[layer] for name, leaf in of_module.items()})
            for layer in range(CONFIG.num_layers)
        ]
        leaves[f"{path}/kernel"] = jnp.asarray(np.stack(layers), jnp.float32)
    expected = logits(tree.unflatten(leaves))
    adapted = lora.with_adapter(params, own)
    np.testing.assert_allclose(logits(adapted), expected, atol=2e-5, rtol=0)
    np.testing.assert_allclose(logits(jax.jit(lora.merge)(adapted)), expected, atol=2e-5, rtol=0)
    assert np.abs(logits(params) - expected).max() > 0.1


@pytest.mark.slow
def test_merge_rounds_once_and_keeps_what_is_not_adapted(params) -> None:
    """On a bfloat16 base: the float32 sum, rounded. On a quantised one: the base that the codes stand for."""
    coarse = quantized.store_as(params, "bfloat16")
    own = adapter(AdapterConfig(), coarse)
    merged = jax.jit(lora.merge)(lora.with_adapter(coarse, own))
    factors = {name: leaf[1] for name, leaf in own["layers"]["attention"]["q_proj"].items()}
    exact = plain(np.asarray(coarse["layers"]["attention"]["q_proj"]["kernel"][1]), factors)
    result = merged["layers"]["attention"]["q_proj"]["kernel"][1]
    assert result.dtype == jnp.bfloat16
    # Half of the distance between two neighbours, and a little for the sum in float32.
    assert (np.abs(np.asarray(result, np.float64) - exact) <= 1.001 * 2**-8 * np.abs(exact) + 1e-7).all()
    np.testing.assert_array_equal(
        merged["layers"]["mlp"]["up_proj"]["kernel"], coarse["layers"]["mlp"]["up_proj"]["kernel"]
    )
    codes = quantized.store_as(params, "nf4")
    turned_back = jax.jit(lambda p: lora.merge(p, "float32"))(lora.with_adapter(codes, own))
    np.testing.assert_allclose(logits(turned_back), logits(lora.with_adapter(codes, own)), atol=2e-5, rtol=0)
    assert turned_back["layers"]["mlp"]["up_proj"]["kernel"].dtype == jnp.float32


@pytest.fixture(scope="module")
def three(params) -> list:
    """Adapters that differ in rank, in targets and in kind."""
    configs = [
        dataclasses.replace(EVERY_LINEAR, rank=2),
        AdapterConfig(rank=5, alpha=3.0, target_modules=("q_proj", "up_proj"), dora=True),
        AdapterConfig(target_modules=("down_proj",)),
    ]
    return [adapter(config, params, seed=seed) for seed, config in enumerate(configs, 1)]


@pytest.mark.parametrize("way", ["all at once", "looked up"])
@pytest.mark.slow
def test_each_row_is_given_its_own_adapter(params, three, way, monkeypatch) -> None:
    monkeypatch.setattr(low_rank, "DENSE_COLUMNS", 0 if way == "looked up" else 24)
    together = lora.with_adapter(params, lora.stack_adapters(three))
    ids = jnp.array([2, 0, 1, 0])

    def hidden(params, ids):
        return MODEL.hidden(params, TOKENS, adapter_ids=ids)

    result = jax.jit(hidden)(together, ids)
    for row, number in enumerate(ids):
        alone = jax.jit(hidden)(lora.with_adapter(params, three[number]), None)
        np.testing.assert_allclose(result[row], alone[row], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="adapter_ids must say"):
        hidden(together, None)


@pytest.mark.slow
def test_decoding_gives_the_logits_of_the_whole_pass_with_several_adapters(params, three) -> None:
    """The list layout, prefill of 10 tokens and single steps, against each adapter alone in the scanned layout."""
    ids = jnp.array([2, 0, 1, 0])
    own = decoding_params(MODEL, lora.with_adapter(params, lora.stack_adapters(three)))
    caches = empty_cache(CONFIG, 4, 16, jnp.dtype("float32"))
    step = jax.jit(MODEL.decode)
    hidden, caches = step(own, TOKENS[:, :10], caches, jnp.zeros(4, jnp.int32), ids)
    pieces = [hidden]
    for place in range(10, 16):
        hidden, caches = step(own, TOKENS[:, place : place + 1], caches, jnp.full(4, place, jnp.int32), ids)
        pieces.append(hidden)
    result = MODEL.unembed(MODEL.head(own), jnp.concatenate(pieces, axis=1))[..., : CONFIG.vocab_size]
    for row, number in enumerate(ids):
        alone = logits(lora.with_adapter(params, three[number]))
        np.testing.assert_allclose(result[row], alone[row], atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "storage", "mesh"),
    [
        ("dora", "float32", MeshConfig(2, 2, 1, 2)),
        ("lora", "int8", MeshConfig(2, 2, 1, 2)),
        ("lora", "nf4", MeshConfig(1, 8)),
        ("lora", "float32", MeshConfig(1, 4, 1, 2)),
        ("dora", "nf4", MeshConfig(2, 2, 1, 2)),
    ],
    ids=str,
)
def test_sharded_gradients_equal_unsharded_ones(params, packed_batch, kind, storage, mesh) -> None:
    config = dataclasses.replace(KINDS[kind], dropout=0.1)
    model = language_model(CONFIG, ComputeConfig(), dropout=0.1)
    stored = jax.jit(quantized.store_as, static_argnums=1)(params, storage)
    full = lora.with_adapter(stored, adapter(config, stored))
    batch, rng = packed_batch(8, 16, CONFIG.vocab_size), jax.random.key(5)
    gradient = jax.jit(jax.grad(next_token(model), has_aux=True))
    expected = gradient(*lora.partition(full, config), batch, rng)
    axes = lora.with_adapter(quantized.stored_axes(MODEL.axes, stored), lora.adapter_axes(full["lora"], MODEL.axes))
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        placed = jax.device_put(full, sharding.shardings_of(devices, full, axes))
        rows = {name: np.asarray(leaf) for name, leaf in vars(batch).items() if name != "normalizer"}
        result = gradient(*lora.partition(placed, config), placing.place_batch(devices, TokenBatch, rows, 8), rng)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-7, rtol=2e-4), result, expected)


def test_dropout_is_in_training_only_and_keeps_the_mean(params, packed_batch) -> None:
    model = language_model(CONFIG, ComputeConfig(), dropout=0.25)
    full = lora.with_adapter(params, adapter(EVERY_LINEAR, params))
    tokens = packed_batch(2, 16, CONFIG.vocab_size).tokens

    @jax.jit
    def hidden(params, rng=None):
        return model.hidden(params, tokens, rng=rng)

    plain_pass = hidden(full)
    without = jax.jit(lambda rng: MODEL.hidden(full, tokens, rng=rng))(jax.random.key(0))
    np.testing.assert_array_equal(plain_pass, without)
    first, second = (hidden(full, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first, hidden(full, jax.random.key(0)))
    assert np.abs(first - plain_pass).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3
    # A fresh adapter adds nothing, whatever is dropped: the base's own path has no dropout.
    fresh = lora.with_adapter(params, lora.init_adapter(EVERY_LINEAR, params, jax.random.key(1)))
    np.testing.assert_array_equal(hidden(fresh, jax.random.key(0)), hidden(params))

    ones = dropped(jnp.ones((8, 33, 500)), 0.25, jax.random.key(3))
    np.testing.assert_allclose(np.unique(ones), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.mean(ones == 0, axis=(0, 2)), 0.25, atol=0.03)
    np.testing.assert_allclose(np.mean(ones), 1, atol=0.01)


@pytest.mark.slow
def test_layers_and_modules_drop_different_elements(params) -> None:
    """Read off gradients: with one token, a row of A has none where its input is dropped."""
    model = language_model(CONFIG, ComputeConfig(), dropout=0.5)
    one = jnp.ones((1, 1), jnp.int32)
    own = adapter(dataclasses.replace(EVERY_LINEAR, target_modules=("[vo]_proj", "(gate|up)_proj")), params)

    def output(own):
        hidden = model.hidden(lora.with_adapter(params, own), one, rng=jax.random.key(0))
        return jnp.sum(hidden[0, 0] * jnp.arange(CONFIG.width))

    gradients = tree.flatten(jax.jit(jax.grad(output))(own))
    dropped_inputs = [
        np.all(np.asarray(gradient[layer]) == 0, axis=1)
        for path, gradient in gradients.items()
        if path.endswith("/a")
        for layer in range(CONFIG.num_layers)
    ]
    assert len(dropped_inputs) == 8
    for number, mask in enumerate(dropped_inputs):
        assert 0.3 < mask.mean() < 0.7
        assert all(0.3 < (mask == other).mean() < 0.7 for other in dropped_inputs[:number])
