"""The least that a step of decoding can take, by formula and by what the makers of devices say."""

from collections.abc import Mapping
from typing import Any

from llama_jax.benchmarks.config import BenchmarkConfig
from llama_jax.core.chips import CHIPS


def least_seconds(config: BenchmarkConfig, own: Mapping[str, Any], count: int) -> tuple[float, float | None]:
    """Bytes of weights and caches that a step of so many streams reads, in the middle of their answers, and the seconds
    it takes at the least where nothing but memory and arithmetic count; None where no figures of the device are known.

    Args:
        own: sizes of the model (`engine_side.decoding_sizes`), `device_kind` and the number of `devices`.
    """
    cached = config.prompt_tokens + config.new_tokens / 2
    step = own["weights_bytes_read"] + count * cached * own["cache_bytes_a_token"]
    chip = CHIPS.get(own["device_kind"])
    if chip is None:
        return step, None
    work = count * (own["flops_a_token"] + cached * own["flops_a_cached_token"])
    return step, max(step / chip.memory_bandwidth, work / chip.flops) / own["devices"]
