import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.objectives.next_token import next_token
from llama_jax.planning.hardware import parse_topology
from llama_jax.planning.topology import DoesNotFitError, absent_devices, compile_without_devices, memory_figures
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import make_program

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPU needs libtpu, which has a wheel for Linux on x86_64 only (the extra 'plan')",
)
needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="compiling for GPU needs JAX's CUDA plugin, which has a wheel for Linux only (the extra 'plan-gpu')",
)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e-256", 256, "TPU v5 lite"),
        ("v4:2x2x2", 8, "TPU v4"),
        ("v4-512", 256, "TPU v4"),
        ("v5p:8x8x8", 512, "TPU v5"),
        ("v6e:16x16", 256, "TPU v6 lite"),
    ],
)
def test_a_slice_has_a_device_a_chip(name, count, kind):
    assert [device.device_kind for device in absent_devices(name)] == [kind] * count


@needs_libtpu
def test_devices_of_several_slices_know_theirs():
    devices = absent_devices(parse_topology("v5e:2x4", num_slices=3))
    assert [device.slice_index for device in devices] == [0] * 8 + [1] * 8 + [2] * 8


@needs_cuda_plugin
def test_gpus_are_counted_by_host():
    devices = absent_devices("h100:32x8")
    assert {device.device_kind for device in devices} == {"NVIDIA H100 80GB HBM3"}
    assert [device.process_index for device in devices] == [host for host in range(32) for _ in range(8)]


_DEVICES_OF_A_GPU = """
import jax
{before}
from llama_jax.planning.topology import absent_devices
print(len(absent_devices("h100:2x4")), jax.default_backend())
"""


@needs_cuda_plugin
@pytest.mark.parametrize("before", ["", "jax.devices()"])
def test_gpus_are_found_wherever_jax_was_told_nothing(before):
    """Without JAX_PLATFORMS the plugin gives up where there is no driver: before we come, if JAX was used before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    script = _DEVICES_OF_A_GPU.format(before=before)
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout == "8 cpu\n"


@pytest.mark.slow
@needs_cuda_plugin
def test_a_step_compiles_for_two_hosts_of_four_gpus():
    config = LlamaConfig(512, 128, 256, 2, num_heads=4, num_kv_heads=2, head_size=32, context_length=256)
    model = language_model(config, ComputeConfig(dtype="bfloat16", remat="full", attention="xla"))
    mesh = make_mesh(MeshConfig(fsdp=8), devices=absent_devices("h100:2x4"))
    with jax.set_mesh(mesh):
        program = make_program(model, next_token(model), TrainingConfig(batch_size=8), 256, seed=0)
        shapes = program.state_shapes, program.frozen_shapes, program.batch_shapes(8)
        lowered = program.step.lower(*shapes)  # pyright: ignore[reportFunctionMemberAccess]
        compiled = compile_without_devices(lowered)
    matrices = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) + 2 * 512 * 128
    memory = compiled.memory_analysis()
    # Parameters and two moments in float32, split among the devices, and norm scales and counters, which are not.
    assert 3 * 4 * matrices / 8 < memory.argument_size_in_bytes < 3 * 4 * matrices / 8 + 20_000
    assert memory.peak_memory_in_bytes > memory.argument_size_in_bytes
    assert "all-gather" in compiled.as_text()


def _sum_of(devices, gibibytes_a_device: int) -> jax.stages.Lowered:
    mesh = Mesh(np.array(devices), ("x",))
    whole = jax.ShapeDtypeStruct(
        (len(devices) * 8, gibibytes_a_device * 2**25), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x"))
    )
    return jax.jit(lambda array: array + 1).lower(whole)


@needs_libtpu
def test_a_program_too_large_for_a_tpu_is_refused_with_the_figures():
    with pytest.raises(DoesNotFitError) as raised:
        compile_without_devices(_sum_of(absent_devices("v5e:2x4"), 10))
    assert raised.value.available_bytes == 15.75 * 2**30
    assert raised.value.needed_bytes == 20 * 2**30
    assert raised.value.shortfall_bytes == 4.25 * 2**30
    assert str(raised.value) == (
        "memory: the program needs 20.00 GiB per device, of which 15.75 are available, 4.25 GiB too few"
    )


@needs_cuda_plugin
def test_a_program_too_large_for_a_gpu_is_refused_although_it_compiles():
    devices = absent_devices("h100:1x2")
    with pytest.raises(DoesNotFitError) as raised:
        compile_without_devices(_sum_of(devices, 48))
    assert (raised.value.needed_bytes, raised.value.available_bytes) == (96 * 2**30, 80 * 2**30)
    assert compile_without_devices(_sum_of(devices, 32)).memory_analysis().peak_memory_in_bytes == 64 * 2**30


@pytest.mark.parametrize(
    ("message", "figures"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.67G) "
            "exceeds available HBM (15.75G).",
            (23.67, 15.75),
        ),
        (
            # As libtpu writes where the program was laid out first.
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 15.79G "
            "of 15.75G hbm. Exceeded hbm capacity by 40.96M. Memory usage report: ",
            (15.79, 15.75),
        ),
    ],
)
def test_what_libtpu_writes_is_understood(message, figures):
    needed, available = memory_figures(message) or (0, 0)
    assert (needed / 2**30, available / 2**30) == pytest.approx(figures)


def test_a_kernel_too_large_for_vmem_is_another_matter():
    message = (
        "RESOURCE_EXHAUSTED: Allocation (size=268435456) would exceed memory (size=134217728) :: #allocation2 "
        "[shape = 'u8[268435456]{0}', space=vmem, size = 0x10000000, scoped, tag = 'input window allocation for "
        "operator input 0."
    )
    assert memory_figures(message) is None


def test_the_compilation_cache_is_as_before():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    compile_without_devices(jax.jit(lambda x: x + 1).lower(jnp.float32(1)))
    assert getattr(jax.config, name) == before
