import dataclasses

import jax
import pytest

from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.lora import method
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.planning.estimates.layout import StepPlan, parameters, resolved
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Partition

TINY = SIZES["tiny"]


def plan_of(**changes) -> StepPlan:
    plan = StepPlan(TINY, ComputeConfig(), TrainingConfig(), 128, MeshConfig(fsdp=1))
    return dataclasses.replace(plan, **changes)


def facts_of(partition: Partition) -> dict:
    shapes = tree.flatten(jax.eval_shape(lambda: partition.init(jax.random.key(0))))
    axes = tree.flatten(partition.axes)
    return {path: (leaf.shape, tuple(axes[path]), partition.is_trainable(path)) for path, leaf in shapes.items()}


@pytest.mark.parametrize("size", ["tiny", "smollm2_135m", "llama3_8b"])
@pytest.mark.parametrize("trainable", [None, "norm|q_proj"])
def test_parameters_are_those_of_the_model(size, trainable):
    plan = plan_of(model=SIZES[size], training=TrainingConfig(trainable=trainable))
    model = language_model(SIZES[size], ComputeConfig())
    planned = {path: (p.shape, p.axes, p.trains) for path, p in parameters(plan).items()}
    assert planned == facts_of(Partition.of(model, trainable))


@pytest.mark.parametrize("dora", [False, True])
def test_parameters_with_an_adapter_are_those_of_a_run_of_lora(dora):
    adapter = AdapterConfig(rank=4, target_modules=("q_proj", "down_proj"), dora=dora, modules_to_save=("lm_head",))
    planned = parameters(plan_of(adapter=adapter, base="bfloat16"))
    made = method(adapter, "bfloat16", 1e-4).partition(language_model(TINY, ComputeConfig()))
    assert {path: (p.shape, p.axes, p.trains) for path, p in planned.items()} == facts_of(made)
    shapes = tree.flatten(jax.eval_shape(lambda: made.init(jax.random.key(0))))
    assert {path: p.stored for path, p in planned.items()} == {
        path: leaf.dtype.itemsize for path, leaf in shapes.items()
    }


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_bytes_of_a_quantised_base_are_those_it_is_stored_in(base):
    adapter = AdapterConfig()
    wide = dataclasses.replace(SIZES["llama_7b"], num_layers=2)
    planned = parameters(plan_of(model=wide, adapter=adapter, base=base))
    made = method(adapter, base, 1e-4).partition(language_model(wide, ComputeConfig()))
    shapes = jax.tree.leaves(jax.eval_shape(lambda: made.init(jax.random.key(0))))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
    assert sum(p.size * p.stored for p in planned.values()) == pytest.approx(stored, rel=1e-3)


def test_a_device_holds_its_part_and_works_on_its_rows():
    mesh = MeshConfig(data=2, fsdp=4, sequence=2, tensor=2)
    plan = plan_of(mesh=mesh, training=TrainingConfig(batch_size=64, microbatches=2))
    held = {path: p.size / p.held(mesh) for path, p in parameters(plan).items()}
    assert held["layers/mlp/gate_proj/kernel"] == 4 * 2 * 2
    assert held["embedding/table"] == 4 * 2 * 2
    assert held["final_norm/scale"] == 1
    assert (plan.num_devices, plan.rows, plan.tokens, plan.weight_parts) == (32, 4, 256, 8)


def test_an_axis_of_minus_one_takes_what_the_others_leave():
    assert resolved(MeshConfig(data=2, tensor=4), 64) == MeshConfig(data=2, fsdp=8, tensor=4)
    assert resolved(MeshConfig(data=-1, fsdp=16), 64) == MeshConfig(data=4, fsdp=16)
