"""What `benchmark all` can be told."""

from dataclasses import dataclass

from llama_jax.core.errors import UserError


@dataclass(frozen=True)
class DeviceBenchmarkConfig:
    """Measure all that the device at hand allows, the most important first: numbers next to float64, training, LoRA and
    decoding, each with the same model in PyTorch where that is installed, attention by implementation. Needs no network
    and no data. Run the same command again to measure what is missing."""

    output: str = "runs/benchmark/all.json"
    """The file that keeps the results, each as soon as it is there."""
    minutes: float = 10.0
    """What would take longer altogether is left out, and measured by the next call."""
    parts: tuple[str, ...] = ()
    """Only these parts, by name; empty: all of the platform."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UserError(f"--minutes {self.minutes}: must be greater than 0")
