"""Hand-computed, with hardware of round figures."""

import dataclasses

import pytest
from step_plans import parameters_of, step_plan

from llama_jax.core.chips import Chip
from llama_jax.core.config import MeshConfig
from llama_jax.model.config import AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.planning.estimates.layout import StepPlan
from llama_jax.planning.estimates.time_model import StepTime, flops, step_time
from llama_jax.planning.hardware import Topology
from llama_jax.training.config import TrainingConfig

D, F, L, V, T, ROWS = 8, 16, 2, 128, 256, 32
MODEL = LlamaConfig(V, D, F, L, num_heads=2, num_kv_heads=2, head_size=4, context_length=T)
LAYER = 4 * D * D + 3 * D * F
HEAD = D * V
CHIP = Chip("tpu", 1e9, 2**30, 1e9, link_bandwidth=1e6, torus_dimensions=2, network_bandwidth=1e4)
GPU = Chip("gpu", 1e9, 2**30, 1e9, nvlink_bandwidth=8e6, network_bandwidth=1e6)
PLAN = step_plan(
    MODEL,
    ComputeConfig(dtype="bfloat16", remat="none", attention="splash"),
    TrainingConfig(batch_size=ROWS),
    T,
    MeshConfig(fsdp=8),
)
SLICE = Topology("v5e", (2, 4))


def changed(**changes) -> StepPlan:
    plan = PLAN
    for name in ("remat", "attention", "dtype"):
        if name in changes:
            plan = dataclasses.replace(plan, compute=dataclasses.replace(plan.compute, **{name: changes.pop(name)}))
    for name in ("batch_size", "microbatches"):
        if name in changes:
            plan = dataclasses.replace(plan, training=dataclasses.replace(plan.training, **{name: changes.pop(name)}))
    return dataclasses.replace(plan, **changes)


SCORES = L * D * T  # one product of queries with keys, the half that causality leaves


@pytest.mark.parametrize(
    ("remat", "again"),
    [
        ("none", 0),
        ("dots", 0),
        ("attention", 2 * L * (LAYER - D * F)),
        ("full", 2 * L * (LAYER - D * F) + 2 * SCORES),
    ],
)
def test_flops_count_what_is_made_again(remat, again):
    products = 6 * (L * LAYER + HEAD)
    assert flops(changed(remat=remat)) == (products + (2 + 7) * SCORES + again) * ROWS * T


@pytest.mark.parametrize("tied", [False, True])
def test_a_scalar_head_costs_a_vector_and_no_vocabulary(tied):
    model = dataclasses.replace(MODEL, scalar_head=True, tie_embeddings=tied)
    plan = step_plan(model, PLAN.compute, PLAN.training, T, PLAN.mesh)
    assert flops(plan) == (6 * (L * LAYER + D) + (2 + 7) * SCORES) * ROWS * T


@pytest.mark.parametrize(("attention", "scores"), [("xla", 4 + 8), ("blocked", 2 + 6), ("splash", 9), ("auto", 9)])
def test_flops_of_attention_are_those_of_its_implementation(attention, scores):
    products = 6 * (L * LAYER + HEAD)
    assert flops(changed(attention=attention)) == (products + scores * SCORES) * ROWS * T


def test_frozen_weights_have_no_gradients():
    adapter = AdapterConfig(rank=4, target_modules=("q_proj",))
    factors = L * 2 * 4 * D
    products = 4 * (L * LAYER + HEAD) + 6 * factors
    assert (
        flops(changed(parameters=parameters_of(MODEL, None, adapter, "bfloat16"))) == (products + 9 * SCORES) * ROWS * T
    )


def test_weights_are_gathered_in_each_pass_over_both_dimensions_of_the_torus():
    time = step_time(PLAN, CHIP, SLICE)
    gathered = 2 * (2 * L * LAYER + HEAD)  # bfloat16
    reduced = 2 * (L * LAYER + HEAD + V * D)  # and the gradient of the embedding
    links = 2 * 2 * 1e6
    assert time.gathers == pytest.approx(gathered * 7 / 8 / links)
    assert time.reductions == pytest.approx(2 * reduced * 7 / 8 / links)
    assert (time.tensor, time.sequence) == (0, 0)
    assert time.compute == pytest.approx(flops(PLAN) / 8 / 1e9)


def test_microbatches_gather_and_reduce_again():
    once, twice = (step_time(changed(microbatches=count), CHIP, SLICE) for count in (1, 2))
    assert twice.gathers == 2 * once.gathers
    assert twice.reductions == 2 * once.reductions
    assert twice.compute == once.compute


def test_along_one_dimension_gradients_are_scattered():
    time = step_time(changed(mesh=MeshConfig(data=2, fsdp=4)), CHIP, SLICE)
    links, reduced = 2 * 1e6, 2 * (L * LAYER + HEAD + V * D)
    scattered = reduced * 3 / 4 / links
    summed = 2 * (reduced / 4) * 1 / 2 / links
    assert time.reductions == pytest.approx(scattered + summed)


def test_in_stages_gradients_are_scattered_along_one_dimension_after_the_other():
    time = step_time(changed(mesh=MeshConfig(fsdp=8, fsdp_stages=(2, 4))), CHIP, SLICE)
    assert time.reductions == pytest.approx(2 * (L * LAYER + HEAD + V * D) * 7 / 8 / 2e6)


def test_slices_sum_their_shards_over_the_network():
    mesh, two = MeshConfig(data=2, fsdp=8), Topology("v5e", (2, 4), 2)
    within = step_time(changed(batch_size=ROWS // 2), CHIP, SLICE)
    time = step_time(changed(mesh=mesh), CHIP, two)
    shard = 2 * (L * LAYER + HEAD + V * D) / 8
    assert time.reductions - within.reductions == pytest.approx(2 * shard / 2 / 1e4)


@pytest.mark.parametrize(("remat", "sums"), [("none", 4), ("dots", 4), ("full", 5)])
def test_tensor_parallel_sums_follow_attention_and_the_mlp_in_each_pass(remat, sums):
    time = step_time(changed(mesh=MeshConfig(fsdp=4, tensor=2), remat=remat), CHIP, SLICE)
    activations = 2 * ROWS // 4 * T * D
    assert time.tensor == pytest.approx(L * sums * 2 * activations / 2 / 2e6)


def test_rows_that_are_split_exchange_their_keys_and_values():
    time = step_time(changed(mesh=MeshConfig(fsdp=4, sequence=2)), CHIP, SLICE)
    keys_and_values = 2 * 2 * ROWS // 4 * T * D
    assert time.sequence == pytest.approx(2 * L * keys_and_values / 2 / 2e6)


@pytest.mark.parametrize(("hosts", "bandwidth"), [(1, 8e6), (2, 4e6)])
def test_gpus_of_several_hosts_share_their_network(hosts, bandwidth):
    gpus = Topology("h100", (hosts, 8 // hosts))
    time = step_time(PLAN, GPU, gpus)
    assert time.gathers == pytest.approx(2 * (2 * L * LAYER + HEAD) * 7 / 8 / bandwidth)


def test_only_gathers_hide_behind_compute():
    assert StepTime(3.0, 2.0, 5.0, 7.0, 11.0).total == 3 + 5 + 7 + 11
    assert StepTime(3.0, 4.0, 5.0, 7.0, 11.0).total == 4 + 5 + 7 + 11
