"""Which of several ways is fastest, by measurement, and what was found for attention in this process. Runs nothing by
itself: a candidate is a function that says how long it took."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from llama_jax.model.config import LlamaConfig


class Measured(NamedTuple):
    """Candidates, fastest first, and those that are none."""

    seconds: Mapping[str, float]
    """By name, fastest first."""
    refused: Mapping[str, str]
    """Why a candidate cannot be taken, in words that follow its name, by name."""

    def __str__(self) -> str:
        times = [f"{name} {1000 * seconds:.3g} ms" for name, seconds in self.seconds.items()]
        return ", ".join(times) + "".join(f"; {name} {reason}" for name, reason in self.refused.items())


def fastest(candidates: Mapping[str, Callable[[], float]], refused: Mapping[str, str]) -> Measured:
    """Let each candidate say how many seconds it takes. One that raises is refused, with what it says in one line.

    Args:
        refused: those that are not even tried, and why.
    """
    seconds, failed = {}, dict(refused)
    for name, measure in candidates.items():
        try:
            seconds[name] = measure()
        # Whatever a compiler or a library says against a candidate, the others are still there.
        except Exception as error:
            failed[name] = f"failed: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
    return Measured(dict(sorted(seconds.items(), key=lambda item: item[1])), failed)


class Kind(NamedTuple):
    """What the order of the implementations of attention is taken to depend on: it is measured with one number and
    length of rows, and kept for others, so that a model is evaluated with what it is trained with."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: str

    @staticmethod
    def of(config: LlamaConfig, dtype: str) -> "Kind":
        """That of a model."""
        return Kind(config.num_heads, config.num_kv_heads, config.head_size, dtype)


_MEASURED: dict[Kind, Measured] = {}


def remember(kind: Kind, measured: Measured) -> None:
    """Let `auto` go by a measurement from now on, in this process."""
    _MEASURED[kind] = measured


def remembered(kind: Kind) -> Measured | None:
    """What was measured on the devices of this process."""
    return _MEASURED.get(kind)
