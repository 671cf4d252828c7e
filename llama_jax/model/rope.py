"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, equation 34), in the half-split convention.

Pairs are (x[i], x[i + H/2]), as in transformers. Meta's checkpoints pair neighbours, (x[2i], x[2i + 1]); the same
rotation on permuted rows of q and k, see `checkpoints/formats/weights.py`."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, Int
from llama_jax.model.config import LlamaConfig, RopeScaling

Rotation = tuple[Float[Array, "B T P"], Float[Array, "B T P"]]
"""Cosine and sine of the angle of each pair at each position."""


def inverse_frequencies(config: LlamaConfig) -> Float[Array, "P"]:
    """Radians per position of each of the P = H/2 pairs, computed in float64: an error here grows with the position."""
    frequencies = config.rope_base ** -(np.arange(0, config.head_size, 2) / config.head_size)
    if config.rope_scaling is not None:
        frequencies = _rescaled(frequencies, config.rope_scaling)
    return jnp.asarray(frequencies, jnp.float32)


def _rescaled(frequencies: Float[np.ndarray, "P"], scaling: RopeScaling) -> Float[np.ndarray, "P"]:
    """Llama 3.1: divide low frequencies by the factor, keep high ones, interpolate between."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context_length / wavelengths
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotation(config: LlamaConfig, positions: Int[Array, "B T"]) -> Rotation:
    """Cosine and sine of the angle of each pair at each position, float32. P is H/2."""
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


@jax.named_scope("rotary_embedding")
def rotate(
    x_BTNH: Float[Array, "B T N H"], cosine: Float[Array, "B T P"], sine: Float[Array, "B T P"]
) -> Float[Array, "B T N H"]:
    """Turn each pair by its angle; computed in float32, returned in the type of `x_BTNH`."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BTNH.dtype)
