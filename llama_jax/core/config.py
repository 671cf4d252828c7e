"""What can be told to the machinery below every command: mesh, processes, tracking. Imports nothing heavy, so that
`--help` is quick (each folder's `config.py` keeps this rule)."""

from dataclasses import dataclass

from llama_jax.core.errors import UserError

MESH_AXES = ("data", "fsdp", "sequence", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. The product of the axes is the number of devices."""

    data: int = 1
    """Devices that replicate the parameters and split the batch. Several TPU slices lie along this axis, which
    must be a multiple of their number."""
    fsdp: int = -1
    """Devices that split both the parameters and the batch; -1 takes every device the other axes leave."""
    sequence: int = 1
    """Devices that split each row among them (context parallelism), for rows too long for one; they split the
    parameters too."""
    tensor: int = 1
    """Devices that split heads, MLP width and vocabulary; keep them within one fast interconnect."""
    fsdp_stages: tuple[int, ...] = ()
    """Sizes of the torus dimensions that `fsdp` is laid along, such as [16, 16] on v5e-256: gradients are then
    reduced by one reduce-scatter a dimension. Empty: as the compiler likes, which on a TPU is an all-reduce over all
    dimensions at once: twice the bytes, on as many more links. The losses are the same; see `plan` for the bytes."""

    def __post_init__(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"mesh.{axis}: {size} is not a size; use a positive number, or -1 for what is left")
        if list(sizes.values()).count(-1) > 1:
            raise UserError(f"mesh: only one axis can be -1, got {sizes}")
        if self.fsdp_stages and (len(self.fsdp_stages) < 2 or min(self.fsdp_stages) < 2):
            raise UserError(
                f"mesh.fsdp_stages: {list(self.fsdp_stages)} must be two or more sizes of at least 2, such as [16, 16]"
            )


@dataclass(frozen=True)
class DistributedConfig:
    """Start-up of several processes. On a TPU pod or under Slurm nothing needs to be set."""

    coordinator: str | None = None
    """Address `host:port` of process 0. None: found from the environment on TPU pods and clusters, else one process."""
    num_processes: int | None = None
    """Number of processes; checked against what actually joined."""
    process_id: int | None = None
    """Rank of this process, from 0."""
    timeout_seconds: int = 300
    """How long to wait at start-up for the other processes."""
    heartbeat_seconds: int = 60
    """How long a process may be silent until the others take it for lost and leave."""

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "heartbeat_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"distributed.{name}: {getattr(self, name)} must be at least 1")
        if (self.coordinator is None) != (self.process_id is None):
            raise UserError("distributed.coordinator and distributed.process_id: set both, or neither")
        if self.coordinator is not None and self.num_processes is None:
            raise UserError("distributed.num_processes: needed when distributed.coordinator is set")


@dataclass(frozen=True)
class SuperviseConfig:
    """What keeps a long run going without a person. See the README of `runs`."""

    restarts: int = 0
    """Times in a row that a command which failed is started again without a new checkpoint in between; 0: never. It
    then runs under a process that waits for it."""
    pause_seconds: float = 10.0
    """Before it is started again, for the first time; doubled from one time to the next, up to five minutes."""
    step_seconds: float = 1800.0
    """A process whose step takes longer is stuck: it leaves, and says where it was. Not of the first two steps, nor of
    the first two of a batch size, which compile. 0: no limit."""
    other_seconds: float = 7200.0
    """The same for whatever else takes time: opening data, restoring, compiling, an evaluation, a save."""

    def __post_init__(self) -> None:
        for name in ("restarts", "pause_seconds", "step_seconds", "other_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"supervise.{name}: {getattr(self, name)} must be at least 0 and finite")


@dataclass(frozen=True)
class TrackingConfig:
    """What a run records about itself."""

    log_every: int = 10
    """Steps between two lines of progress where the output is not a terminal (metrics.jsonl has every step)."""
    tensorboard: bool = True
    """Write TensorBoard event files under the run directory."""
    wandb: bool | str = False
    """Send the metrics and the configuration to Weights & Biases (extra `wandb`) too: `true`, or PROJECT, or
    ENTITY/PROJECT. WANDB_MODE=offline only writes them under the run directory."""
    profile_start: int | None = None
    """First step of a `jax.profiler` trace, written under the run directory; None traces nothing."""
    profile_steps: int = 3
    """Number of steps to trace."""
