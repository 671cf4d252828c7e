"""What every writer of another format does: weights as that format's named tensors, made one at a time."""

from collections.abc import Callable

import numpy as np

from llama_jax.checkpoints.formats.weights import Naming, Weights, from_ours, tensors_of
from llama_jax.core.errors import UserError


def named_tensors(
    weights: Weights, naming: Naming, dtype: np.dtype | None
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], Callable[[str], np.ndarray]]:
    """Shape ([out, in]) and type of each tensor by its name in the format, and a function that makes one by name.

    The function raises UserError when a value is too large for the type asked for.

    Args:
        dtype: type of all tensors; None: as stored.
    """
    places = {getattr(name, naming).format(layer): (name, layer) for name, layer in tensors_of(weights.config)}
    tensors = {
        theirs: (name.shape(weights.config)[:: -1 if name.transposed else 1], dtype or weights.dtype(name))
        for theirs, (name, _) in places.items()
    }

    def read(theirs: str) -> np.ndarray:
        name, layer = places[theirs]
        with np.errstate(over="ignore"):
            array = weights.read(name, layer).astype(tensors[theirs][1], copy=False)
        if not np.isfinite(array).all():
            raise UserError(f"tensor {theirs}: has values too large for {array.dtype}; bfloat16 or float32 holds them")
        return from_ours(name, array, weights.config, naming)

    return tensors, read
