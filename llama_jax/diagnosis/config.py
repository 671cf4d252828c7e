"""What `doctor` can be told."""

from dataclasses import dataclass, field

from llama_jax.core.config import DistributedConfig, MeshConfig
from llama_jax.core.errors import UserError, nearest
from llama_jax.model.config import SIZES


@dataclass(frozen=True)
class DoctorConfig:
    """Look whether this machine is fit to train: versions, devices, speeds, whether the devices exchange numbers
    rightly, and common mistakes with what puts them right. Exit code 1 when something is broken."""

    run_dir: str = "runs"
    """Where runs will be written."""
    size: str = "llama_7b"
    """Model whose implementations of attention and loss are told, by the names of `model.size`."""
    sequence_length: int = 2048
    """Tokens in a row of its training."""
    seconds: float = 6.0
    """How long to measure one device, about, beside starting and compiling."""
    thorough: bool = False
    """Check the numbers of every kernel that could run: a CPU interprets those for accelerators, which takes it half a
    minute."""
    json: bool = False
    """Print one JSON object as the last line."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The device mesh; collectives are tried along each axis of it."""
    distributed: DistributedConfig = field(default_factory=lambda: DistributedConfig(timeout_seconds=60))
    """Several processes, all of which run this command."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"--size {self.size}: unknown{nearest(self.size, SIZES)}")
        if self.sequence_length < 1:
            raise UserError(f"--sequence_length {self.sequence_length}: must be at least 1")
        if not self.seconds > 0:
            raise UserError(f"--seconds {self.seconds}: must be greater than 0")
