import dataclasses

import jax
import pytest
from step_plans import step_plan

from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.model.quantized import StorageType
from llama_jax.planning.estimates.layout import parameters, resolved, stored_as
from llama_jax.runs.methods import low_rank_adapter
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Partition

TINY = SIZES["tiny"]


def facts_of(partition: Partition) -> dict:
    shapes = tree.flatten(jax.eval_shape(lambda: partition.init(jax.random.key(0))))
    axes = tree.flatten(partition.axes)
    return {path: (leaf.shape, tuple(axes[path]), partition.is_trainable(path)) for path, leaf in shapes.items()}


def lora(adapter: AdapterConfig, base: StorageType, model: LlamaConfig = TINY) -> Partition:
    return low_rank_adapter(adapter, base, 1e-4).partition(language_model(model, ComputeConfig()))


def test_parameters_are_those_that_the_run_declares():
    adapter = AdapterConfig(rank=4, target_modules=("q_proj", "down_proj"), dora=True, modules_to_save=("lm_head",))
    for partition in (Partition.of(language_model(TINY, ComputeConfig()), "norm|q_proj"), lora(adapter, "bfloat16")):
        found = parameters(partition)
        assert {path: (p.shape, p.axes, p.trains) for path, p in found.items()} == facts_of(partition)
    assert {path: p.stored for path, p in found.items()} == {
        path: 4 if p.trains or path.startswith("lora/") else 2 for path, p in found.items()
    }


@pytest.mark.parametrize("base", ["bfloat16", "int8", "nf4"])
def test_a_base_stored_in_another_type_has_the_bytes_of_that_type(base):
    adapter = AdapterConfig(modules_to_save=("lm_head",))
    wide = dataclasses.replace(SIZES["llama_7b"], num_layers=2)
    partition = lora(adapter, base, wide)
    shapes = jax.tree.leaves(jax.eval_shape(lambda: partition.init(jax.random.key(0))))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
    found = parameters(partition)
    assert sum(p.size * p.stored for p in found.values()) == pytest.approx(stored, rel=1e-12)
    changed = stored_as(parameters(lora(adapter, "float32", wide)), base)
    assert sum(p.size * p.stored for p in changed.values()) == pytest.approx(stored, rel=1e-3)
    as_declared = {path: (p.shape, p.axes, p.trains) for path, p in found.items()}
    assert as_declared == {path: (p.shape, p.axes, p.trains) for path, p in changed.items()}


def test_a_device_holds_its_part_and_works_on_its_rows():
    mesh = MeshConfig(data=2, fsdp=4, sequence=2, tensor=2)
    training = TrainingConfig(batch_size=64, microbatches=2)
    plan = step_plan(TINY, ComputeConfig(), training, 128, mesh)
    held = {path: p.size / p.held(mesh) for path, p in plan.parameters.items()}
    assert held["layers/mlp/gate_proj/kernel"] == 4 * 2 * 2
    assert held["embedding/table"] == 4 * 2 * 2
    assert held["final_norm/scale"] == 1
    assert (plan.num_devices, plan.rows, plan.tokens, plan.weight_parts) == (32, 4, 256, 8)


def test_an_axis_of_minus_one_takes_what_the_others_leave():
    assert resolved(MeshConfig(data=2, tensor=4), 64) == MeshConfig(data=2, fsdp=8, tensor=4)
    assert resolved(MeshConfig(data=-1, fsdp=16), 64) == MeshConfig(data=4, fsdp=16)
