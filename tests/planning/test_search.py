import dataclasses
import itertools
from typing import Any

import jax
import pytest
from step_plans import step_plan
from sweeps import some

from llama_jax.config import COMMANDS, PRESETS
from llama_jax.core.chips import CHIPS, Chip
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.settings.command_line import parse
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.estimates.layout import StepPlan
from llama_jax.planning.estimates.memory_model import memory_estimate
from llama_jax.planning.estimates.time_model import step_time
from llama_jax.planning.hardware import Topology, parse_topology
from llama_jax.planning.search import candidates, is_possible, remedies, usable_bytes
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

V5E = CHIPS["TPU v5e"]
SMALL_V5E = dataclasses.replace(V5E, usable_bytes=4 * 2**30)
POD = parse_topology("v5e-256")
SEVEN = step_plan(
    SIZES["llama_7b"],
    ComputeConfig(dtype="bfloat16", remat="full", attention="splash"),
    TrainingConfig(batch_size=2048),
    2048,
    MeshConfig(fsdp=256),
)

SMALL = parse_topology("v5e-32")
FEW = dataclasses.replace(SEVEN, training=TrainingConfig(batch_size=64), mesh=MeshConfig(fsdp=32))
"""The same with fewer candidates."""


def changed(plan: StepPlan, **changes) -> StepPlan:
    for section in ("compute", "training", "mesh"):
        if section in changes:
            changes[section] = dataclasses.replace(getattr(plan, section), **changes[section])
    return dataclasses.replace(plan, **changes)


def test_what_fits_comes_first_and_then_what_is_faster():
    found = candidates(FEW, SMALL, V5E)
    fitting = [each for each in found if each.fits]
    assert found[: len(fitting)] == fitting
    assert 0 < len(fitting) < len(found)
    for group in (fitting, found[len(fitting) :]):
        seconds = [each.time.total for each in group]
        assert seconds == sorted(seconds)
    assert all(each.fits == (each.memory.total <= 15.75 * 2**30) for each in found)


def test_candidates_are_what_the_models_of_memory_and_time_say():
    for each in candidates(FEW, SMALL, V5E)[::20]:
        assert each.memory == memory_estimate(each.plan)
        assert each.time == step_time(each.plan, V5E, SMALL)


@pytest.mark.slow
def test_the_order_is_always_the_same():
    options = [each.options for each in candidates(FEW, SMALL, V5E)]
    assert options == [each.options for each in candidates(changed(FEW, compute={"remat": "none"}), SMALL, V5E)]
    assert len(set(options)) == len(options)


def test_every_policy_microbatch_and_mesh_that_divides_is_looked_at():
    tiny = step_plan(SIZES["tiny"], ComputeConfig(), TrainingConfig(batch_size=8), 128, MeshConfig(fsdp=4))
    found = candidates(tiny, Topology("v5e", (2, 2)), V5E)
    shapes = {(each.plan.mesh.data, each.plan.mesh.fsdp, each.plan.mesh.tensor) for each in found}
    assert shapes == {(d, f, t) for d, f, t in itertools.product((1, 2, 4), repeat=3) if d * f * t == 4}
    by_rows = sum(len({1, 2, 4, 8} & set(range(8 // (d * f) + 1))) for d, f, _ in shapes)
    assert len(found) == 4 * by_rows
    assert {each.plan.mesh.sequence for each in found} == {1}


def test_rows_are_split_where_it_is_asked_for():
    tiny = step_plan(SIZES["tiny"], ComputeConfig(), TrainingConfig(batch_size=1), 128, MeshConfig(sequence=4, fsdp=1))
    four = Topology("v5e", (2, 2))
    assert {each.plan.mesh.sequence for each in candidates(tiny, four, V5E)} == {4}
    assert {each.plan.mesh.sequence for each in candidates(tiny, four, V5E, sequence=True)} == {1, 2, 4}


@pytest.mark.slow
def test_slices_lie_along_data_and_tensor_within_a_host_of_gpus():
    slices = candidates(changed(FEW, mesh={"data": 2}), parse_topology("v5e-32", 2), V5E)
    assert min(each.plan.mesh.data for each in slices) == 2
    gpus = candidates(FEW, parse_topology("h100:4x8"), CHIPS["NVIDIA H100 80GB HBM3"])
    assert max(each.plan.mesh.tensor for each in gpus) == 8


@pytest.mark.parametrize("mesh", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1), (1, 1, 1, 8), (1, 4, 2, 1)])
def test_what_is_called_possible_can_be_built(mesh):
    config = SIZES["tiny"]
    data, fsdp, sequence, tensor = mesh
    sizes = MeshConfig(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)
    training = TrainingConfig(batch_size=16, microbatches=2)
    assert is_possible(step_plan(config, ComputeConfig(), training, 128, sizes), Topology("v5e", (2, 4)))
    model = language_model(config, ComputeConfig())
    built = make_mesh(sizes)
    with jax.set_mesh(built):
        make_program(model, next_token(model), training, 128, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": {"fsdp": 128}},  # of 256 devices
        {"mesh": {"fsdp": 4, "tensor": 64}},  # 32 heads
        {"mesh": {"fsdp": 128, "sequence": 2}, "sequence_length": 2046},
        {"mesh": {"fsdp": 64, "data": 4}, "training": {"batch_size": 128}},
        {"training": {"microbatches": 16}},
        {"training": {"batch_ramp": ((0, 128), (10, 2048))}},
    ],
)
def test_what_does_not_divide_is_not_possible(changes):
    assert is_possible(SEVEN, POD)
    assert not is_possible(changed(SEVEN, **changes), POD)


def test_remedies_fit_and_come_cheapest_first():
    large = changed(SEVEN, compute={"remat": "none"})
    found = remedies(large, POD, V5E)
    assert len(found) == 3
    for each in found:
        assert each.memory_bytes <= usable_bytes(V5E) < memory_estimate(large).total
        assert each.memory_bytes == memory_estimate(each.plan).total
        assert each.seconds == step_time(each.plan, V5E, each.topology).total


def test_of_several_that_fit_the_cheapest_of_each_kind_is_named():
    found = remedies(changed(SEVEN, training={"batch_size": 8192}), POD, V5E)
    # 8 rows a device become 4: the fewest gathers that are enough; as dear a token as half the batch, which is another
    # training.
    assert [each.options for each in found[:2]] == ["--training.microbatches 2", "--training.batch_size 4096"]
    assert found[0].cost == pytest.approx(found[1].cost)
    assert found[0].seconds == pytest.approx(2 * found[1].seconds)


def test_where_fewer_than_three_single_changes_would_do_two_at_once_are_tried():
    found = remedies(changed(SEVEN, compute={"remat": "none"}), POD, V5E)
    assert [each.cost for each in found] == sorted(each.cost for each in found)
    assert [each.options for each in found if each.options.count("--") == 1] == ["--compute.remat attention"]
    assert found[0].options == "--compute.remat dots --training.microbatches 4"


def test_a_replicated_model_is_split():
    replicated = changed(SEVEN, mesh={"data": 256, "fsdp": 1})
    assert "--mesh.data 64 --mesh.fsdp 4" not in [each.options for each in remedies(replicated, POD, V5E)]
    roomy = dataclasses.replace(V5E, usable_bytes=80 * 2**30)
    assert remedies(replicated, POD, roomy)[0].options == "--mesh.data 128 --mesh.fsdp 2"


def test_a_base_is_stored_in_a_smaller_type_and_the_next_slice_named():
    adapter = step_plan(
        SIZES["llama2_13b"],
        ComputeConfig(dtype="bfloat16", remat="full"),
        TrainingConfig(batch_size=16),
        512,
        MeshConfig(fsdp=4),
        AdapterConfig(),
        "float32",
    )
    found = remedies(adapter, parse_topology("v5e-4"), V5E)
    assert [each.options for each in found[:2]] == [
        "--model_dtype bfloat16",
        "--topology v5e:2x4 --mesh.data 1 --mesh.fsdp 8",
    ]


def test_scores_of_attention_are_not_kept_where_a_kernel_can_run():
    large = changed(SEVEN, compute={"attention": "xla"}, training={"batch_size": 4096})
    found = remedies(large, POD, V5E)
    assert found[0].options == "--compute.attention auto"
    assert found[0].cost < 1


def test_what_the_compiler_said_is_believed_over_a_smaller_estimate():
    estimate = memory_estimate(SEVEN).total
    assert remedies(SEVEN, POD, V5E, needed_bytes=2 * estimate)[0].memory_bytes > usable_bytes(V5E) / 2
    for each in remedies(SEVEN, POD, V5E, needed_bytes=4 * estimate):
        assert each.memory_bytes == pytest.approx(4 * memory_estimate(each.plan).total)
        assert each.memory_bytes <= usable_bytes(V5E)


def read(command: str, options: str) -> Any:
    return parse(COMMANDS[command], options.split(), command=command, commands=COMMANDS, presets=PRESETS)


@pytest.mark.parametrize("chip", some([V5E, SMALL_V5E], [SMALL_V5E]), ids=["16 GiB", "4 GiB"])
def test_options_are_what_the_command_takes(chip: Chip):
    given = "--model.size llama_7b --compute.dtype bfloat16 --compute.attention splash --training.batch_size 2048 "
    for each in remedies(changed(SEVEN, compute={"remat": "none"}), POD, chip):
        config = read("plan", f"{given} --mesh.fsdp 256 --compute.remat none {each.options}")
        assert (config.compute, config.mesh) == (each.plan.compute, each.plan.mesh)
        assert config.training == dataclasses.replace(
            config.training,
            batch_size=each.plan.training.batch_size,
            microbatches=each.plan.training.microbatches,
        )
    for each in candidates(FEW, SMALL, chip)[::40]:
        config = read("plan", f"{given} {each.options}")
        assert (config.compute, config.mesh) == (each.plan.compute, each.plan.mesh)
        assert config.training.microbatches == each.plan.training.microbatches


def test_options_of_a_base_are_what_the_command_takes():
    assert read("plan lora", "--size llama_7b --model_dtype nf4").model_dtype == "nf4"
