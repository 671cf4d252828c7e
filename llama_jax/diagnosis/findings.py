"""The common mistakes: from the record of a machine to what is wrong with it, and what would put it right.

Pure functions: what they look at is in the record, so that a machine can be made up."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

from packaging.specifiers import SpecifierSet

from llama_jax.core.chips import GIB
from llama_jax.diagnosis.environment import Devices, Host, Requirement

Level: TypeAlias = Literal["broken", "warning", "note"]


class Finding(NamedTuple):
    """Something that is not as it should be (`broken`: training is not possible, or not on the hardware that is here)
    or good to know (`note`)."""

    level: Level
    what: str
    remedy: str
    """What to do about it, a command where there is one."""
    hosts: tuple[str, ...] = ()
    """Where; empty where there is one host, or where it concerns all."""


class View(NamedTuple):
    """What a check looks at."""

    host: Host
    devices: Devices | None
    """None: JAX did not start."""

    @property
    def hardware(self) -> str:
        """The platform that this machine is made for."""
        return "tpu" if self.host.tpu_chips else "gpu" if self.host.nvidia_gpus else "cpu"

    @property
    def is_forced_elsewhere(self) -> bool:
        """Whether JAX was told not to use the accelerator."""
        asked = self.host.variables.get("JAX_PLATFORMS", "")
        names = {"gpu": {"gpu", "cuda"}}.get(self.hardware, {self.hardware})
        return bool(asked) and not names & set(asked.replace(" ", "").split(","))

    @property
    def works(self) -> bool:
        """Whether JAX came up on that hardware."""
        return self.devices is not None and self.devices.platform == self.hardware

    @property
    def level(self) -> Level:
        """Of what may keep the accelerator from being used: it does no harm where that is used nevertheless."""
        return "warning" if self.works else "broken"

    def version(self, package: str) -> str | None:
        return self.host.packages.get(package)

    def variable(self, name: str) -> str:
        return self.host.variables.get(name, "")


Check: TypeAlias = Callable[[View], Iterator[Finding]]

_LEAST_FREE_DISK = 5 * GIB
_LEAST_FREE_MEMORY = 2 * GIB
_LEAST_OPEN_FILES = 4096
"""Checkpoints, data shards and connections to a bucket are open at the same time; shells begin with 1,024."""
_LEAST_SHARED = GIB

_LEAST_DRIVER = {"12": 525, "13": 580}
"""Major versions of NVIDIA's driver, by that of CUDA: docs.nvidia.com/deploy/cuda-compatibility. Newer drivers run
programs of older CUDA."""
_PLUGINS = {"12": ("jax-cuda12-plugin", "jax-cuda12-pjrt"), "13": ("jax-cuda13-plugin", "jax-cuda13-pjrt")}
_ON = ("1", "true", "yes", "on", "t", "y")


def findings(hosts: Sequence[Host], devices: Devices | None) -> list[Finding]:
    """Everything that is wrong, what is broken first. The same of several hosts is said once, with their names."""
    found: dict[Finding, list[str]] = {}
    for host in hosts:
        view = View(host, devices)
        here = [finding for check in _CHECKS for finding in check(view)]
        if not any(finding.level == "broken" for finding in here):
            here += _no_accelerator(view)
        for finding in here:
            found.setdefault(finding, []).append(host.name)
    several = [
        finding._replace(hosts=tuple(names) if len(names) < len(hosts) else ()) for finding, names in found.items()
    ]
    return in_order([*several, *_differences(hosts)])


def in_order(found: Sequence[Finding]) -> list[Finding]:
    """What is broken first, notes last."""
    return sorted(found, key=lambda finding: ("broken", "warning", "note").index(finding.level))


def expected_processes(host: Host) -> int:
    """How many processes the environment says this job has; 1 where it says nothing."""
    workers = len(host.variables.get("TPU_WORKER_HOSTNAMES", "").split(","))
    slices = host.variables.get("MEGASCALE_NUM_SLICES", "")
    tasks = host.variables.get("SLURM_NTASKS", "")
    return max(workers * (int(slices) if slices.isdigit() else 1), int(tasks) if tasks.isdigit() else 1)


def _versions(view: View) -> Iterator[Finding]:
    """Ranges that this package and JAX ask for."""
    for asked in view.host.requirements:
        version = view.host.python if asked.package == "python" else view.version(asked.package)
        if version is None and asked.owner in ("llama_jax", "jax"):
            remedy = f"pip install '{asked.package}{asked.specifier}'"
            yield Finding("broken", f"{asked.package} is not installed", remedy)
        if version is None or SpecifierSet(asked.specifier).contains(version, prereleases=True):
            continue
        what = f"{asked.package} {version} does not fit {_owner(view, asked)}, which needs {asked.specifier}"
        unused = asked.package == "libtpu" and view.hardware != "tpu"
        unused |= asked.package.startswith("jax-cuda") and view.hardware != "gpu"
        yield Finding("warning" if unused else view.level, what, _install(view, asked))


def _owner(view: View, asked: Requirement) -> str:
    return f"{asked.owner} {view.version(asked.owner.partition('[')[0])}"


def _install(view: View, asked: Requirement) -> str:
    if asked.package == "python":
        return f"make an environment with Python {asked.specifier}"
    if asked.owner == "llama_jax":
        return f"pip install '{asked.package}{asked.specifier}'"
    extra = asked.owner if asked.owner.startswith("jax[") else f"jax[cuda{''.join(re.findall('[0-9]+', asked.owner))}]"
    return f"pip install '{'jax' if asked.owner == 'jax' else extra}=={view.version('jax')}'"


def _wrong_wheel(view: View) -> Iterator[Finding]:
    """JAX without support for the accelerator."""
    host = view.host
    if view.is_forced_elsewhere:
        return
    if host.tpu_chips and not view.version("libtpu"):
        what = f"this machine has {host.tpu_chips} TPU chips, but libtpu is not installed: JAX runs on the CPU"
        yield Finding(view.level, what, "pip install 'llama_jax[tpu]'")
    if host.nvidia_gpus and not any(view.version(names[0]) for names in _PLUGINS.values()):
        what = f"this machine has {host.nvidia_gpus} NVIDIA GPUs, but JAX is installed for the CPU only"
        yield Finding(view.level, what, f"pip install 'llama_jax[cuda{_best_cuda(host)}]'")


def _driver(host: Host) -> int | None:
    """Major version of NVIDIA's driver."""
    major = (host.nvidia_driver or "").split(".")[0]
    return int(major) if major.isdigit() else None


def _best_cuda(host: Host) -> str:
    driver = _driver(host)
    return "12" if driver is not None and driver < _LEAST_DRIVER["13"] else "13"


def _cuda(view: View) -> Iterator[Finding]:
    """Wheels of one CUDA with the driver of another, or of two at once."""
    host, driver = view.host, _driver(view.host)
    installed = [cuda for cuda, names in _PLUGINS.items() if view.version(names[0])]
    if len(installed) > 1 and not view.is_forced_elsewhere:
        other = "12" if _best_cuda(host) == "13" else "13"
        what = "the plugins for CUDA 12 and for CUDA 13 are both installed, and both register as JAX's backend for GPUs"
        yield Finding(view.level if host.nvidia_gpus else "warning", what, _uninstall(*_PLUGINS[other]))
    if driver is None or not host.nvidia_gpus or view.is_forced_elsewhere or len(installed) != 1:
        return
    (cuda,) = installed
    if driver < _LEAST_DRIVER[cuda]:
        what = f"{_PLUGINS[cuda][0]} needs NVIDIA's driver {_LEAST_DRIVER[cuda]} or newer, this is {host.nvidia_driver}"
        older = f"{_uninstall(*_PLUGINS['13'])} && pip install 'llama_jax[cuda12]'"
        remedy = older if cuda == "13" and driver >= _LEAST_DRIVER["12"] else "update the driver"
        yield Finding(view.level, what, remedy)
    elif cuda == "12" and driver >= _LEAST_DRIVER["13"]:
        what = f"jax-cuda12-plugin is installed, but driver {host.nvidia_driver} supports CUDA 13"
        remedy = f"for the newer CUDA: {_uninstall(*_PLUGINS['12'])} && pip install 'llama_jax[cuda13]'"
        yield Finding("note", what, remedy)


def _uninstall(*packages: str) -> str:
    return f"pip uninstall -y {' '.join(packages)}"


def _idle_plugins(view: View) -> Iterator[Finding]:
    """Wheels for hardware that this machine does not have."""
    host = view.host
    if view.version("libtpu") and not host.tpu_chips:
        yield Finding("note", "libtpu is installed, and there is no TPU: `plan` compiles with it", "nothing to do")
    plugin = next((names[0] for names in _PLUGINS.values() if view.version(names[0])), None)
    if plugin and not host.nvidia_gpus and host.nvidia_driver:
        what = f"NVIDIA's driver {host.nvidia_driver} is loaded, but no GPU is visible"
        yield Finding("broken", what, "in a container: docker run --gpus all …; else see nvidia-smi")
    elif plugin and not host.nvidia_gpus:
        what = f"{plugin} is installed, and there is no NVIDIA driver: `plan` compiles with it"
        remedy = f"nothing to do; {_uninstall(plugin)} silences JAX's warning at every start"
        yield Finding("note", what, remedy)


def _no_accelerator(view: View) -> Iterator[Finding]:
    """The hardware is here, JAX looked for it, and runs elsewhere for a reason that only it knows."""
    if view.devices is None or view.hardware == "cpu" or view.works or view.is_forced_elsewhere:
        return
    why = "; ".join(view.devices.backend_errors)
    what = f"this machine has a {view.hardware.upper()}, but JAX runs on {view.devices.platform}"
    extra = "tpu" if view.hardware == "tpu" else f"cuda{_best_cuda(view.host)}"
    yield Finding("broken", f"{what}: {why}" if why else what, f"pip install -U 'llama_jax[{extra}]'")


def _platforms(view: View) -> Iterator[Finding]:
    if view.is_forced_elsewhere and view.hardware != "cpu":
        forced, present = view.variable("JAX_PLATFORMS"), view.hardware.upper()
        what = f"JAX_PLATFORMS={forced} keeps JAX from using the {present} of this machine"
        yield Finding("warning", what, "unset JAX_PLATFORMS")
    names = set(view.variable("JAX_PLATFORMS").replace(" ", "").split(","))
    absent = {name for name, count in (("tpu", view.host.tpu_chips), ("cuda", view.host.nvidia_gpus)) if not count}
    if names & absent and view.devices is None:
        what = f"JAX_PLATFORMS={view.variable('JAX_PLATFORMS')} asks for hardware that this machine does not have"
        yield Finding("broken", what, "unset JAX_PLATFORMS")


def _hidden_gpus(view: View) -> Iterator[Finding]:
    chosen = view.host.variables.get("CUDA_VISIBLE_DEVICES")
    if view.host.nvidia_gpus and chosen is not None and chosen.strip() in ("", "-1", "none", "NoDevFiles"):
        yield Finding(view.level, f"CUDA_VISIBLE_DEVICES={chosen!r} hides every GPU", "unset CUDA_VISIBLE_DEVICES")


def _tpu_in_use(view: View) -> Iterator[Finding]:
    """One process at a time can have a TPU."""
    for holder in view.host.tpu_holders:
        what = f"process {holder.pid} holds the TPU: {holder.command}"
        yield Finding(view.level, what, f"wait until it ends, or: kill {holder.pid}")
    if view.host.tpu_chips and view.host.tpu_lock_owner and not view.host.tpu_holders:
        what = f"/tmp/libtpu_lockfile belongs to {view.host.tpu_lock_owner}, and no process of yours can lock it"
        remedy = "sudo lsof -w /dev/accel* /dev/vfio/* names who uses the TPU; if nobody: sudo rm /tmp/libtpu_lockfile"
        yield Finding(view.level, what, remedy)


def _tensorflow(view: View) -> Iterator[Finding]:
    if view.version("tensorflow") and view.host.nvidia_gpus:
        what = f"TensorFlow {view.version('tensorflow')} is installed; once imported it takes all GPU memory"
        remedy = "llama_jax does not need it: pip uninstall -y tensorflow, or install tensorflow-cpu"
        yield Finding("warning", what, remedy)


def _settings(view: View) -> Iterator[Finding]:
    """What changes how much of a GPU a program gets, and what changes or slows down every program."""
    of_memory = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "memory is allocated on demand, and fragments",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "it decides how much of each GPU JAX takes, instead of 75%",
        "XLA_CLIENT_MEM_FRACTION": "it decides how much of each GPU JAX takes, instead of 75%",
        "XLA_PYTHON_CLIENT_ALLOCATOR": "the allocator is not JAX's own; `platform` is very slow",
    }
    harmless = {"XLA_PYTHON_CLIENT_PREALLOCATE": _ON, "XLA_PYTHON_CLIENT_ALLOCATOR": ("default", "bfc")}
    slow = {
        "JAX_ENABLE_X64": "64-bit numbers take twice the memory, and TPUs emulate them",
        "JAX_DISABLE_JIT": "nothing is compiled",
        "JAX_DEBUG_NANS": "every program waits for its results to be looked at",
    }
    for name, meaning in (of_memory | slow if view.host.nvidia_gpus else slow).items():
        value = view.variable(name)
        if value.lower() in _ON if name in slow else value and value.lower() not in harmless.get(name, ()):
            yield Finding("warning", f"{name}={value}: {meaning}", f"unset {name}")


def _limits(view: View) -> Iterator[Finding]:
    host = view.host
    if host.open_files is not None and host.open_files < _LEAST_OPEN_FILES:
        what = f"a process may open {host.open_files:,} files, too few for checkpoints and data shards"
        yield Finding("warning", what, "ulimit -n 65536, in the shell that starts the run")
    if host.nvidia_gpus > 1 and host.shared_bytes is not None and host.shared_bytes < _LEAST_SHARED:
        what = f"/dev/shm has {host.shared_bytes / 2**20:,.0f} MiB, through which GPUs of one machine may exchange data"
        yield Finding("warning", what, "docker run --shm-size=8g …, or sudo mount -o remount,size=8g /dev/shm")
    if host.tpu_generation in ("v5e", "v6e", "7x") and not host.huge_pages:
        what = "transparent huge pages are off, so the TPU is slow to start and to stop"
        yield Finding("warning", what, "sudo sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'")
    if host.available_bytes is not None and host.available_bytes < _LEAST_FREE_MEMORY:
        what = f"{host.available_bytes / GIB:.1f} GiB of host memory are free"
        yield Finding("warning", what, "end other processes, or use a machine with more: ps aux --sort=-rss | head")


def _pod(view: View) -> Iterator[Finding]:
    """Several hosts that must find each other."""
    host, names = view.host, view.variable("TPU_WORKER_HOSTNAMES")
    if "," in names and not view.variable("TPU_WORKER_ID"):
        what = f"TPU_WORKER_HOSTNAMES lists {len(names.split(','))} hosts, but TPU_WORKER_ID does not say which is this"
        yield Finding("broken", what, "export TPU_WORKER_ID=… on each host: its place in that list, from 0")
    if view.devices is None:
        return
    processes, expected = view.devices.processes, expected_processes(host)
    if processes > 1 and not view.devices.joined:
        what = f"the TPU has {processes} hosts, but their processes have not joined, which checkpoints need"
        remedy = "export TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, or give --distributed.coordinator and the rest"
        yield Finding("broken", what, remedy)
    elif processes < expected:
        what = f"{processes} of the {expected} processes of this job take part"
        yield Finding("broken", what, "start the same command on every host, without --distributed.num_processes 1")


def _places(view: View) -> Iterator[Finding]:
    """Where a run writes."""
    runs, cache = view.host.runs, view.devices.cache if view.devices else None
    if not runs.writable:
        yield Finding("broken", f"{runs.path} is not writable, so no run can be saved", "choose another --run_dir")
    elif runs.free_bytes is not None and runs.free_bytes < _LEAST_FREE_DISK:
        what = f"{runs.free_bytes / GIB:.1f} GiB are free at {runs.path}; a checkpoint takes 12 bytes per parameter"
        yield Finding("warning", what, "free some space, or choose another --run_dir, such as one in a bucket: gs://…")
    if cache is not None and not cache.writable:
        what = f"{cache.path} is not writable, so every start recompiles"
        yield Finding("warning", what, "export JAX_COMPILATION_CACHE_DIR=… to a directory of your own")
    if view.devices is not None and cache is None:
        what = "there is no compilation cache, so every start recompiles"
        yield Finding("warning", what, "unset JAX_ENABLE_COMPILATION_CACHE")


def _differences(hosts: Sequence[Host]) -> Iterator[Finding]:
    """What must be the same on all hosts of a job."""
    for package in sorted({name for host in hosts for name in host.packages}):
        by_version: dict[str, list[str]] = {}
        for host in hosts:
            by_version.setdefault(host.packages.get(package, "none"), []).append(host.name)
        if len(by_version) > 1:
            versions = "; ".join(f"{version} on {_some(names)}" for version, names in by_version.items())
            yield Finding("broken", f"hosts differ in {package}: {versions}", "install the same on every host")
    without = [host.name for host in hosts if not host.variables.get("TPU_WORKER_HOSTNAMES")]
    if without and len(without) < len(hosts):
        what = f"TPU_WORKER_HOSTNAMES is missing on {_some(without)}, set on others"
        yield Finding("broken", what, "export the same TPU_WORKER_HOSTNAMES on every host, or on none", tuple(without))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_CHECKS: tuple[Check, ...] = (
    _versions,
    _wrong_wheel,
    _cuda,
    _tpu_in_use,
    _hidden_gpus,
    _pod,
    _places,
    _platforms,
    _tensorflow,
    _settings,
    _limits,
    _idle_plugins,
)
