"""From times to rates: tokens per second and model FLOPs utilization."""

PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}
"""Dense bfloat16 FLOP/s of one JAX device, by `device_kind`, from the makers' data sheets (a device is a core on TPU
v2 and v3, else a chip)."""


def peak_flops(device_kind: str) -> float | None:
    """Peak of one device, or None when the kind is not in the table: no utilization is better than a wrong one."""
    return PEAK_FLOPS.get(device_kind)


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
