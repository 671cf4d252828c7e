"""The gradient step: bad updates leave no trace, microbatches add up, only what is selected trains."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax.core import tree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import SIZES, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.objectives.objective import Objective
from llama_jax.training.checkpoint_items import checkpoint_items, from_checkpoint_items
from llama_jax.training.config import TrainingConfig
from llama_jax.training.optimizer import adamw, learning_rate_schedule
from llama_jax.training.program import make_program
from llama_jax.training.step import init_state, make_step

CONFIG = TrainingConfig(steps=100, batch_size=8, warmup_steps=20, spike_window=16)
KEY = jax.random.key(0)


def quadratic(trainable, frozen, batch, rng):
    """A loss of a vector whose gradient and value the batch can spoil: 0.5 |w - target|^2 * scale + offset."""
    del frozen, rng
    target, scale, offset = batch.loss_weights[0], batch.loss_weights[1, 0], batch.loss_weights[1, 1]
    loss = 0.5 * jnp.sum(jnp.square(trainable["w"]["kernel"] - target)) * scale
    return loss, {"loss": loss + offset}


QUADRATIC = Objective(quadratic, TokenBatch)
OPTIMIZER = adamw(CONFIG, {"w/kernel"})


def batch_of(packed_batch, number: int, scale: float = 1.0, offset: float = 0.0):
    noise = 1.0 + 0.01 * np.random.default_rng(number).standard_normal(4)
    weights = jnp.asarray([noise, [scale, offset, 0, 0]], jnp.float32)
    return packed_batch(2, 4, 50, seed=number).replace(loss_weights=weights)


BAD = {
    "a NaN gradient": {"scale": float("nan")},
    "an infinite loss": {"offset": float("inf")},
    "a spike of the loss": {"offset": 1000.0},
    "a spike of the gradient": {"scale": 1e4},
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("at", [12, 40], ids=["in warm-up", "later"])
def test_a_bad_update_leaves_the_state_as_if_never_seen(packed_batch, bad, at) -> None:
    """Two runs over the same good batches, one of which also meets a bad one: parameters, moments and the number of
    updates agree bit for bit after every later step, and exactly one update is skipped."""
    step = jax.jit(make_step(QUADRATIC, OPTIMIZER, CONFIG, seed=0))
    clean = spoiled = init_state(OPTIMIZER, CONFIG, {"w": {"kernel": jnp.zeros(4)}})
    for number in range(60):
        if number == at:
            spoiled, metrics = step(spoiled, {}, batch_of(packed_batch, 1000, **BAD[bad]))
            assert int(metrics["skipped_updates"]) == 1
        clean, _ = step(clean, {}, batch_of(packed_batch, number))
        spoiled, metrics = step(spoiled, {}, batch_of(packed_batch, number))
        assert int(metrics["skipped_updates"]) == int(number >= at), number
        for name in ("trainable", "optimizer_state", "updates"):
            jax.tree.map(np.testing.assert_array_equal, getattr(spoiled, name), getattr(clean, name))
    assert int(spoiled.batches) == int(clean.batches) + 1
    assert int(clean.updates) == 60


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("bad", ["a NaN gradient", "an infinite loss"])
def test_non_finite_updates_are_skipped_from_the_first_step_on(packed_batch, bad, at) -> None:
    step = jax.jit(make_step(QUADRATIC, OPTIMIZER, CONFIG, seed=0))
    state = init_state(OPTIMIZER, CONFIG, {"w": {"kernel": jnp.zeros(4)}})
    for number in range(30):
        state, metrics = step(state, {}, batch_of(packed_batch, number, **(BAD[bad] if number == at else {})))
    assert int(metrics["skipped_updates"]) == 1
    assert int(state.updates) == 29
    assert np.isfinite(state.trainable["w"]["kernel"]).all()


def test_a_lasting_rise_of_the_loss_is_accepted_after_a_while(packed_batch) -> None:
    step = jax.jit(make_step(QUADRATIC, OPTIMIZER, CONFIG, seed=0))
    state = init_state(OPTIMIZER, CONFIG, {"w": {"kernel": jnp.zeros(4)}})
    skipped = []
    for number in range(120):
        offset = 10.0 if number < 30 else 30.0
        state, metrics = step(state, {}, batch_of(packed_batch, number, offset=offset))
        skipped.append(int(metrics["skipped_updates"]))
    assert 0 < skipped[-1] < 40
    assert skipped[-1] == skipped[70]


def test_clipping_is_that_of_optax() -> None:
    gradients = {"w": {"kernel": jax.random.normal(KEY, (64,)), "scale": jnp.ones(8)}}
    small = jax.tree.map(lambda leaf: leaf * 0.01, gradients)
    config = dataclasses.replace(CONFIG, clip_norm=0.5)
    ours = adamw(config, {"w/kernel"})
    theirs = optax.chain(optax.clip_by_global_norm(0.5), *[optax.identity()])
    for given in (gradients, small):
        clipped = theirs.update(given, theirs.init(given))[0]
        mean = ours.update(given, ours.init(given), given)[1][1][0].mu
        jax.tree.map(
            lambda own, other: np.testing.assert_allclose(own, (1 - config.beta1) * other, rtol=1e-5), mean, clipped
        )


def test_the_step_on_cpu_writes_moments_where_they_are() -> None:
    """No copy of what is donated."""
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        model = language_model(SIZES["tiny"], ComputeConfig())
        program = make_program(model, next_token(model), CONFIG, 32, seed=0)
        shapes = (program.state_shapes, program.frozen_shapes, program.batch_shapes(CONFIG.batch_size))
        compiled = program.step.lower(*shapes).compile().as_text()
    assert not [line for line in compiled.splitlines() if re.search(r" copy\(%state_(optimizer|trainable)", line)]


def test_microbatches_give_the_update_of_the_whole_batch(packed_batch) -> None:
    model = language_model(dataclasses.replace(SIZES["tiny"], num_layers=1), ComputeConfig())
    params = jax.jit(model.init)(KEY)
    optimizer = adamw(CONFIG, model.decays)
    batch = packed_batch(8, 32, 512)
    results = {}
    for count in (1, 4):
        config = dataclasses.replace(CONFIG, microbatches=count)
        step = jax.jit(make_step(next_token(model), optimizer, config, seed=0))
        results[count] = step(jax.jit(lambda p, c=config: init_state(optimizer, c, p))(params), {}, batch)
    np.testing.assert_allclose(results[4][1]["loss"], results[1][1]["loss"], rtol=1e-6)
    np.testing.assert_allclose(results[4][1]["grad_norm"], results[1][1]["grad_norm"], rtol=1e-6)
    moments = [results[count][0].optimizer_state[1][0].mu for count in (4, 1)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *moments)


def test_schedule_rises_linearly_and_falls_along_a_cosine_to_a_tenth() -> None:
    schedule = learning_rate_schedule(TrainingConfig(steps=110, warmup_steps=10, peak_learning_rate=1.0))
    assert float(schedule(0)) == pytest.approx(0.1)
    assert float(schedule(9)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(0.55)
    assert float(schedule(110)) == pytest.approx(0.1)
    assert float(schedule(1000)) == pytest.approx(0.1)


def test_weight_decay_spares_what_is_not_named() -> None:
    config = dataclasses.replace(CONFIG, warmup_steps=1, peak_learning_rate=0.5, weight_decay=0.1)
    optimizer = adamw(config, {"layers/up/kernel"})
    params = {"layers": {"norm": {"scale": jnp.ones((2, 4))}, "up": {"kernel": jnp.ones((2, 4, 4))}}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["layers"]["norm"]["scale"], 1.0)
    np.testing.assert_allclose(after["layers"]["up"]["kernel"], 1 - 0.5 * 0.1)


def program_of(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    model = language_model(dataclasses.replace(SIZES["tiny"], num_layers=2), ComputeConfig())
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    with jax.set_mesh(mesh):
        return make_program(model, next_token(model), config, 32, seed=0)


def test_only_selected_parameters_train_and_have_moments(packed_batch) -> None:
    program = program_of(trainable=r"q_proj|v_proj")
    paths = {"layers/attention/q_proj/kernel", "layers/attention/v_proj/kernel"}
    assert set(tree.flatten(program.state_shapes.trainable)) == paths
    moments = tree.flatten(program.state_shapes.optimizer_state)
    assert {path.split("/", 3)[3] for path in moments if "/mu/" in path} == paths
    with jax.set_mesh(program.mesh):
        state, frozen = program.init(KEY)
        before = jax.device_get(frozen)
        rows = {k: np.asarray(v) for k, v in vars(packed_batch(8, 32, 512)).items() if k != "normalizer"}
        state, _ = program.step(state, frozen, program.place_batch(rows, 8))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)


def test_checkpoint_items_and_state_are_inverse() -> None:
    program = program_of(trainable="mlp")
    with jax.set_mesh(program.mesh):
        state, frozen = program.init(KEY)
    items = checkpoint_items(state, frozen)
    assert tree.size(items["params"]) == tree.size(program.model.shapes())
    again, frozen_again = from_checkpoint_items(items, program.state_shapes)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, (again, frozen_again), (state, frozen))


def test_parameters_and_moments_are_placed_by_the_table() -> None:
    state = program_of().state_shapes
    kernels = [
        state.trainable["layers"]["mlp"]["up_proj"]["kernel"],
        state.optimizer_state[1][0].nu["layers"]["mlp"]["up_proj"]["kernel"],
    ]
    for kernel in kernels:
        assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert state.trainable["final_norm"]["scale"].sharding.is_fully_replicated


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        program_of(trainable="lora")


def test_tokens_follow_the_batch_ramp() -> None:
    config = TrainingConfig(steps=20, batch_size=32, batch_ramp=((0, 8), (5, 16), (10, 32)))
    assert [config.batch_size_at(step) for step in (0, 4, 5, 9, 10, 19)] == [8, 8, 16, 16, 32, 32]
    program = dataclasses.replace(program_of(), config=config)
    assert program.tokens_until(0) == 0
    assert program.tokens_until(7) == (5 * 8 + 2 * 16) * 32
    assert program.tokens_until(20) == (5 * 8 + 5 * 16 + 10 * 32) * 32


def test_the_checkpoint_may_leave_frozen_parameters_elsewhere() -> None:
    program = program_of(trainable="mlp")
    with jax.set_mesh(program.mesh):
        state, frozen = program.init(KEY)

    def kept(path: str) -> bool:
        return path.endswith("scale")

    items = checkpoint_items(state, frozen, "adapter", kept)
    assert set(items) == {"adapter", "optimizer"}
    assert all("mlp" in path or path.endswith("scale") for path in tree.flatten(items["adapter"]))
    elsewhere = tree.split(frozen, lambda path: not kept(path))[0]
    again, frozen_again = from_checkpoint_items(items, program.state_shapes, elsewhere, "adapter")
    jax.tree.map(np.testing.assert_array_equal, (again, frozen_again), (state, frozen))


@pytest.mark.slow
def test_a_run_begins_with_parameters_that_are_there_already() -> None:
    program = program_of(trainable="mlp")
    with jax.set_mesh(program.mesh):
        fresh = program.init(KEY)
        begun = program.begin(jax.jit(program.model.init)(KEY))
    jax.tree.map(np.testing.assert_array_equal, begun, fresh)
    places = [jax.tree.map(lambda leaf: leaf.sharding.spec, one[0].trainable) for one in (begun, fresh)]
    assert places[0] == places[1]


def test_a_frozen_matrix_costs_two_products_and_a_trained_one_three() -> None:
    everything, part = program_of(), program_of(trainable="up_proj")
    config = everything.model.config
    trained = config.num_layers * config.width * config.mlp_width
    products = everything.model.parameter_count() - config.vocab_size * config.width
    assert everything.flops_per_token - part.flops_per_token == 2 * (products - trained)


def schedule_of(**changes):
    config = TrainingConfig(steps=110, peak_learning_rate=1.0, final_learning_rate_fraction=0.2, **changes)
    return learning_rate_schedule(config)


def test_schedules_fall_by_a_line_or_stay() -> None:
    linear, constant = (schedule_of(warmup_steps=10, schedule=name) for name in ("linear", "constant"))
    np.testing.assert_allclose([linear(n) for n in (0, 4, 9, 10, 60, 110, 500)], [0.1, 0.5, 1, 1, 0.6, 0.2, 0.2], 1e-6)
    np.testing.assert_allclose([constant(n) for n in (0, 9, 10, 500)], [0.1, 1, 1, 1], 1e-6)


def test_the_warm_up_may_be_a_fraction_of_the_schedule() -> None:
    config = TrainingConfig(steps=1219, warmup_steps=None, warmup_fraction=0.03)
    assert config.warmup_updates == 37
    assert dataclasses.replace(config, steps=9, schedule_steps=200).warmup_updates == 6


def test_the_warm_up_is_said_in_one_way_only() -> None:
    """Else one of the two would be without effect."""
    for steps, fraction, said in ((100, 0.03, "100 and training.warmup_fraction: 0.03"), (None, None, "null")):
        with pytest.raises(UserError, match=said):
            TrainingConfig(warmup_steps=steps, warmup_fraction=fraction)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("weight_decay", math.nan, "nan must be at least 0 and finite"),
        ("weight_decay", -0.1, "-0.1 must be at least 0 and finite"),
        ("clip_norm", math.inf, "inf must be at least 0 and finite"),
        ("beta1", 1.0, "1.0 must be at least 0 and below 1"),
        ("beta2", math.nan, "nan must be at least 0 and below 1"),
        ("epsilon", 0.0, "0.0 must be above 0 and finite"),
        ("final_learning_rate_fraction", -1.0, "-1.0 must be at least 0 and finite"),
        ("spike_sigma", math.nan, "nan must be at least 0 and finite"),
        ("z_loss", math.inf, "inf must be at least 0 and finite"),
        ("warmup_steps", -1, "-1 must be at least 0, or null"),
        ("schedule_steps", 0, "0 must be at least 1, or null"),
    ],
)
def test_settings_by_which_no_update_could_be_made_are_refused(setting: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=f"^training.{setting}: {message}"):
        TrainingConfig(**{setting: value})


def test_a_parameter_may_have_a_learning_rate_of_its_own() -> None:
    config = TrainingConfig(warmup_steps=0, peak_learning_rate=0.5, weight_decay=0.1, clip_norm=1e9)
    params = {"slow": {"kernel": jnp.ones(3)}, "fast": {"kernel": jnp.ones(3)}}
    optimizer = adamw(config, {"slow/kernel", "fast/kernel"}, lambda path: 10.0 if path.startswith("fast") else 1.0)
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    # The first update of AdamW is -rate * (sign of the gradient + decay * parameter).
    np.testing.assert_allclose(updates["slow"]["kernel"], -0.5 * 1.1, rtol=1e-6)
    np.testing.assert_allclose(updates["fast"]["kernel"], -5.0 * 1.1, rtol=1e-6)


def test_a_profile_names_the_parts_as_the_papers_do() -> None:
    program = program_of()
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.state_shapes, program.frozen_shapes, program.batch_shapes(8))
    text = lowered.as_text(debug_info=True)
    for name in ("rms_norm", "rotary_embedding", "scaled_dot_product_attention", "swiglu", "cross_entropy", "adamw"):
        assert f"/{name}/" in text or f"({name})/" in text, name
