"""From times to rates: tokens per second and model FLOPs utilization."""

from llama_jax.core.chips import CHIPS


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device, or None when the kind is not in the table: no utilization is better than a
    wrong one."""
    chip = CHIPS.get(device_kind)
    return None if chip is None else chip.flops


def rates(
    tokens: int, seconds: float, flops_per_token: int, devices: int, peak: float | None
) -> dict[str, float | None]:
    """Rates of a step that took `seconds` for `tokens` on `devices` devices."""
    per_second = tokens / seconds
    utilization = None if peak is None else per_second * flops_per_token / (devices * peak)
    return {
        "tokens_per_second": per_second,
        "tokens_per_second_per_device": per_second / devices,
        "model_flops_utilization": utilization,
    }
