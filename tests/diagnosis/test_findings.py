"""Every common mistake, in a machine that is made up, gives its line and its remedy; a healthy one gives none."""

import dataclasses
from typing import Any

import pytest

from llama_jax.diagnosis.environment import Devices, Holder, Host, Place, Requirement
from llama_jax.diagnosis.findings import GIB, expected_processes, findings

JAX = {"llama_jax": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
CUDA12 = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
CUDA13 = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}

LAPTOP = Host(
    name="laptop",
    python="3.11.7",
    packages=JAX,
    requirements=(
        Requirement("llama_jax", "python", ">=3.11"),
        Requirement("llama_jax", "flax", ">=0.12.6,<0.12.9"),
        Requirement("jax", "jaxlib", ">=0.10.1,<=0.10.2"),
        Requirement("jax[tpu]", "libtpu", "==0.0.42.*"),
        Requirement("jax[cuda12]", "jax-cuda12-plugin", ">=0.10.2,<=0.10.2"),
        Requirement("jax-cuda12-plugin", "jax-cuda12-pjrt", "==0.10.2"),
    ),
    memory_bytes=16 * GIB,
    available_bytes=12 * GIB,
    open_files=65536,
    shared_bytes=8 * GIB,
    runs=Place("/home/me/runs", True, 500 * GIB),
)
TPU_VM = dataclasses.replace(
    LAPTOP, name="vm-0", packages=JAX | {"libtpu": "0.0.42.1"}, tpu_chips=8, tpu_generation="v5e"
)
GPU_NODE = dataclasses.replace(
    LAPTOP, name="node", packages=JAX | CUDA13, nvidia_gpus=8, nvidia_driver="580.65.06", tpu_chips=0
)
ON_CPU = Devices("cpu", "cpu", 8, 1, 0, None, True, (), Place("/home/me/.cache"), 0)
ON_TPU = dataclasses.replace(ON_CPU, platform="tpu", kind="TPU v5 lite", memory_bytes=16 * GIB)
ON_GPU = dataclasses.replace(ON_CPU, platform="gpu", kind="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB)
POD = {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4", "TPU_WORKER_ID": "0"}


def but(host: Host, **changes: Any) -> Host:
    """The host with other facts."""
    return dataclasses.replace(host, **changes)


def with_variables(host: Host, **variables: str) -> Host:
    return but(host, variables=variables)


def with_packages(host: Host, **packages: str) -> Host:
    """Names with `_` for `-`, but for our own."""
    given = {name if name == "llama_jax" else name.replace("_", "-"): version for name, version in packages.items()}
    return but(host, packages=dict(host.packages) | given)


def without(host: Host, *packages: str) -> Host:
    return but(host, packages={name: version for name, version in host.packages.items() if name not in packages})


def with_driver(version: str, packages: dict[str, str]) -> Host:
    return but(GPU_NODE, nvidia_driver=version, packages=JAX | packages)


@pytest.mark.parametrize("host, devices", [(LAPTOP, ON_CPU), (TPU_VM, ON_TPU), (GPU_NODE, ON_GPU)])
def test_a_healthy_machine_gives_no_finding(host, devices) -> None:
    assert findings([host], devices) == []
    assert findings([host, but(host, name="another")], dataclasses.replace(devices, processes=2)) == []


MISTAKES: dict[str, tuple[Host, Devices | None, str, str, str]] = {
    "another process holds the TPU": (
        but(TPU_VM, tpu_holders=(Holder(4711, "python train.py"),)),
        None,
        "broken",
        "process 4711 holds the TPU: python train.py",
        "kill 4711",
    ),
    "a lock file of another user's": (
        but(TPU_VM, tpu_lock_owner="root"),
        None,
        "broken",
        "/tmp/libtpu_lockfile belongs to root",
        "sudo rm /tmp/libtpu_lockfile",
    ),
    "TensorFlow beside a GPU": (
        with_packages(GPU_NODE, tensorflow="2.20.0"),
        ON_GPU,
        "warning",
        "TensorFlow 2.20.0",
        "pip uninstall -y tensorflow",
    ),
    "JAX for the processor on a GPU node": (
        but(GPU_NODE, packages=JAX),
        ON_CPU,
        "broken",
        "this machine has 8 NVIDIA GPUs, but JAX is installed for the CPU only",
        "pip install 'llama_jax[cuda13]'",
    ),
    "the same with an older driver": (
        with_driver("550.54.15", {}),
        ON_CPU,
        "broken",
        "JAX is installed for the CPU only",
        "pip install 'llama_jax[cuda12]'",
    ),
    "JAX for the processor on a TPU": (
        but(TPU_VM, packages=JAX),
        ON_CPU,
        "broken",
        "this machine has 8 TPU chips, but libtpu is not installed",
        "pip install 'llama_jax[tpu]'",
    ),
    "wheels of CUDA 12 with a driver of CUDA 13": (
        with_driver("580.65.06", CUDA12),
        ON_GPU,
        "note",
        "jax-cuda12-plugin is installed, but driver 580.65.06 supports CUDA 13",
        "pip install 'llama_jax[cuda13]'",
    ),
    "wheels of CUDA 13 with a driver of CUDA 12": (
        with_driver("550.54.15", CUDA13),
        ON_CPU,
        "broken",
        "jax-cuda13-plugin needs NVIDIA's driver 580 or newer, this is 550.54.15",
        "pip install 'llama_jax[cuda12]'",
    ),
    "a driver too old for both": (
        with_driver("470.1", CUDA12),
        ON_CPU,
        "broken",
        "jax-cuda12-plugin needs NVIDIA's driver 525 or newer, this is 470.1",
        "update the driver",
    ),
    "the plugins for both": (
        but(GPU_NODE, packages=JAX | CUDA12 | CUDA13),
        None,
        "broken",
        "the plugins for CUDA 12 and for CUDA 13 are both installed",
        "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt",
    ),
    "jaxlib of another JAX": (
        with_packages(LAPTOP, jaxlib="0.9.0"),
        None,
        "broken",
        "jaxlib 0.9.0 does not fit jax 0.10.2, which needs >=0.10.1,<=0.10.2",
        "pip install 'jax==0.10.2'",
    ),
    "libtpu of another JAX": (
        with_packages(TPU_VM, libtpu="0.0.30"),
        ON_CPU,
        "broken",
        "libtpu 0.0.30 does not fit jax[tpu] 0.10.2",
        "pip install 'jax[tpu]==0.10.2'",
    ),
    "a plugin of another JAX": (
        with_driver("580.65.06", CUDA13 | CUDA12 | {"jax-cuda12-plugin": "0.9.2"}),
        ON_GPU,
        "warning",
        "jax-cuda12-plugin 0.9.2 does not fit jax[cuda12] 0.10.2",
        "pip install 'jax[cuda12]==0.10.2'",
    ),
    "halves of a plugin": (
        with_driver("550.54.15", CUDA12 | {"jax-cuda12-pjrt": "0.9.2"}),
        None,
        "broken",
        "jax-cuda12-pjrt 0.9.2 does not fit jax-cuda12-plugin 0.10.2",
        "pip install 'jax[cuda12]==0.10.2'",
    ),
    "a package out of range": (
        with_packages(LAPTOP, flax="0.13.0"),
        ON_CPU,
        "warning",
        "flax 0.13.0 does not fit llama_jax 0.1.0",
        "pip install 'flax>=0.12.6,<0.12.9'",
    ),
    "a package that is missing": (
        without(LAPTOP, "flax"),
        ON_CPU,
        "broken",
        "flax is not installed",
        "pip install 'flax>=0.12.6,<0.12.9'",
    ),
    "an old Python": (but(LAPTOP, python="3.10.1"), None, "broken", "python 3.10.1 does not fit", "Python >=3.11"),
    "64-bit numbers": (
        with_variables(TPU_VM, JAX_ENABLE_X64="1"),
        ON_TPU,
        "warning",
        "JAX_ENABLE_X64=1: 64-bit numbers take twice the memory",
        "unset JAX_ENABLE_X64",
    ),
    "no compilation": (
        with_variables(LAPTOP, JAX_DISABLE_JIT="true"),
        ON_CPU,
        "warning",
        "JAX_DISABLE_JIT=true: nothing is compiled",
        "unset JAX_DISABLE_JIT",
    ),
    "JAX kept from the TPU": (
        with_variables(TPU_VM, JAX_PLATFORMS="cpu"),
        ON_CPU,
        "warning",
        "JAX_PLATFORMS=cpu keeps JAX from using the TPU of this machine",
        "unset JAX_PLATFORMS",
    ),
    "JAX sent to a GPU that is not there": (
        with_variables(LAPTOP, JAX_PLATFORMS="cuda"),
        None,
        "broken",
        "JAX_PLATFORMS=cuda asks for hardware that this machine does not have",
        "unset JAX_PLATFORMS",
    ),
    "memory taken bit by bit": (
        with_variables(GPU_NODE, XLA_PYTHON_CLIENT_PREALLOCATE="false"),
        ON_GPU,
        "warning",
        "XLA_PYTHON_CLIENT_PREALLOCATE=false",
        "unset XLA_PYTHON_CLIENT_PREALLOCATE",
    ),
    "a part of the memory": (
        with_variables(GPU_NODE, XLA_PYTHON_CLIENT_MEM_FRACTION=".3"),
        ON_GPU,
        "warning",
        "XLA_PYTHON_CLIENT_MEM_FRACTION=.3",
        "unset XLA_PYTHON_CLIENT_MEM_FRACTION",
    ),
    "the same under its new name": (
        with_variables(GPU_NODE, XLA_CLIENT_MEM_FRACTION=".3"),
        ON_GPU,
        "warning",
        "XLA_CLIENT_MEM_FRACTION=.3",
        "unset XLA_CLIENT_MEM_FRACTION",
    ),
    "hidden GPUs": (
        with_variables(GPU_NODE, CUDA_VISIBLE_DEVICES=""),
        ON_CPU,
        "broken",
        "CUDA_VISIBLE_DEVICES='' hides every GPU",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "few open files": (
        but(LAPTOP, open_files=1024),
        ON_CPU,
        "warning",
        "a process may open 1,024 files, too few",
        "ulimit -n 65536",
    ),
    "little shared memory": (
        but(GPU_NODE, shared_bytes=64 * 2**20),
        ON_GPU,
        "warning",
        "/dev/shm has 64 MiB",
        "--shm-size=8g",
    ),
    "small pages beside a TPU": (
        but(TPU_VM, huge_pages=False),
        ON_TPU,
        "warning",
        "transparent huge pages are off",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ),
    "little host memory": (
        but(TPU_VM, available_bytes=GIB),
        ON_TPU,
        "warning",
        "1.0 GiB of host memory are free",
        "ps aux",
    ),
    "a plugin without its driver": (
        but(LAPTOP, packages=JAX | CUDA12),
        ON_CPU,
        "note",
        "jax-cuda12-plugin is installed, and there is no NVIDIA driver",
        "pip uninstall -y jax-cuda12-plugin",
    ),
    "libtpu without a TPU": (
        but(LAPTOP, packages=dict(TPU_VM.packages)),
        ON_CPU,
        "note",
        "libtpu is installed, and there is no TPU",
        "nothing to do",
    ),
    "GPUs that do not reach into a container": (
        but(GPU_NODE, nvidia_gpus=0),
        ON_CPU,
        "broken",
        "NVIDIA's driver 580.65.06 is loaded, but no GPU is visible",
        "docker run --gpus all",
    ),
    "a GPU that JAX cannot use": (
        GPU_NODE,
        dataclasses.replace(ON_CPU, backend_errors=("RuntimeError: Unable to load cuDNN. Is it installed?",)),
        "broken",
        "this machine has a GPU, but JAX runs on cpu: RuntimeError: Unable to load cuDNN. Is it installed?",
        "pip install -U 'llama_jax[cuda13]'",
    ),
    "a host that does not know its number": (
        with_variables(TPU_VM, TPU_WORKER_HOSTNAMES="10.0.0.1,10.0.0.2"),
        None,
        "broken",
        "TPU_WORKER_HOSTNAMES lists 2 hosts, but TPU_WORKER_ID does not say which is this",
        "export TPU_WORKER_ID",
    ),
    "one of four hosts alone": (
        with_variables(TPU_VM, **POD),
        ON_TPU,
        "broken",
        "1 of the 4 processes of this job take part",
        "start the same command on every host",
    ),
    "processes that have not joined": (
        TPU_VM,
        dataclasses.replace(ON_TPU, processes=4, joined=False),
        "broken",
        "the TPU has 4 hosts, but their processes have not joined",
        "export TPU_WORKER_HOSTNAMES",
    ),
    "nowhere to write": (
        but(LAPTOP, runs=Place("/runs", False, GIB)),
        ON_CPU,
        "broken",
        "/runs is not writable",
        "--run_dir",
    ),
    "a full disk": (
        but(LAPTOP, runs=Place("/runs", True, GIB)),
        ON_CPU,
        "warning",
        "1.0 GiB are free at /runs",
        "free some space",
    ),
    "a cache of another user's": (
        LAPTOP,
        dataclasses.replace(ON_CPU, cache=Place("/cache", False)),
        "warning",
        "/cache is not writable, so every start recompiles",
        "export JAX_COMPILATION_CACHE_DIR",
    ),
    "no cache": (
        LAPTOP,
        dataclasses.replace(ON_CPU, cache=None),
        "warning",
        "there is no compilation cache",
        "unset JAX_ENABLE_COMPILATION_CACHE",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_its_line_and_what_puts_it_right(mistake) -> None:
    host, devices, level, what, remedy = MISTAKES[mistake]
    found = findings([host], devices)
    named = [finding for finding in found if what in finding.what]
    assert [finding.level for finding in named] == [level], found
    assert remedy in named[0].remedy
    assert "\n" not in named[0].what + named[0].remedy


def test_what_explains_no_harm_is_no_problem_where_the_accelerator_works() -> None:
    mismatched = with_packages(TPU_VM, libtpu="0.0.41.1")
    assert [finding.level for finding in findings([mismatched], ON_TPU)] == ["warning"]
    assert [finding.level for finding in findings([mismatched], ON_CPU)] == ["broken"]


def test_settings_for_gpus_are_of_no_concern_elsewhere() -> None:
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_VISIBLE_DEVICES": ""}
    assert findings([with_variables(LAPTOP, **variables)], ON_CPU) == []


def test_what_a_part_of_the_hosts_has_is_said_with_their_names() -> None:
    hosts = [but(TPU_VM, name=f"vm-{number}", open_files=1024 if number == 2 else 65536) for number in range(4)]
    (finding,) = findings(hosts, dataclasses.replace(ON_TPU, processes=4))
    assert finding.hosts == ("vm-2",)
    everywhere = [but(host, open_files=1024) for host in hosts]
    (finding,) = findings(everywhere, dataclasses.replace(ON_TPU, processes=4))
    assert finding.hosts == ()


def test_hosts_that_differ_are_named() -> None:
    other = but(with_packages(TPU_VM, jaxlib="0.10.1"), name="vm-3")
    found = findings([TPU_VM, other], dataclasses.replace(ON_TPU, processes=2))
    assert [finding.what for finding in found] == ["hosts differ in jaxlib: 0.10.2 on vm-0; 0.10.1 on vm-3"]
    assert found[0].level == "broken"


def test_hosts_that_lack_the_list_of_workers_are_named() -> None:
    hosts = [with_variables(TPU_VM, **POD), but(TPU_VM, name="vm-1")]
    found = findings(hosts, dataclasses.replace(ON_TPU, processes=4))
    assert [finding.what for finding in found] == ["TPU_WORKER_HOSTNAMES is missing on vm-1, set on others"]
    assert found[0].hosts == ("vm-1",)


def test_the_environment_says_how_many_processes_a_job_has() -> None:
    assert expected_processes(LAPTOP) == 1
    assert expected_processes(with_variables(TPU_VM, **POD)) == 4
    assert expected_processes(with_variables(TPU_VM, **POD, MEGASCALE_NUM_SLICES="2")) == 8
    assert expected_processes(with_variables(GPU_NODE, SLURM_NTASKS="16")) == 16
