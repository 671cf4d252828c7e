"""A base and its adapter as the weights of one model, merged tensor by tensor, so that nothing is in memory whole.

Computed in float32 and cast once to the type of the base: a product A B that was rounded before it is added would lose
most of what it changes. `unmerged` takes an adapter out again."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.checkpoints.adapters.adapter import Adapter
from llama_jax.checkpoints.formats.weights import WeightName, Weights
from llama_jax.checkpoints.reward_normalization import NORMALIZATION_FILE, without_normalization
from llama_jax.core import tree
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import has_tokenizer
from llama_jax.model import paths
from llama_jax.model.config import LlamaConfig

_TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
"""How the names of the files begin that make a tokenizer."""


@dataclass(frozen=True)
class MergedWeights:
    """`Weights` of a base with an adapter added to it or taken out of it. Made by `merged` and `unmerged`."""

    source: str
    files: Mapping[str, bytes]
    base: Weights
    adapter: Adapter
    """Its `base_name` and `base_step` say where the base was found."""
    sign: float = 1.0

    @functools.cached_property
    def _factors(self) -> Mapping[str, Any]:
        """Leaves of the adapter by path (`layers/attention/q_proj/a`)."""
        return tree.flatten(self.adapter.factors)

    @property
    def config(self) -> LlamaConfig:
        return self.adapter.architecture(self.base.config)

    def dtype(self, name: WeightName) -> np.dtype:
        if name.ours == paths.SCORE and not self.base.config.scalar_head:
            return np.dtype(np.float32)
        return self.base.dtype(name)

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        if name.ours in self.adapter.saved_modules:
            whole = np.asarray(self.adapter.saved_modules[name.ours], np.float32)
            return self._cast(name, layer, whole[tuple(map(slice, name.shape(self.config)))])
        weight = self.base.read(name, layer)
        module = paths.module_of(name.ours)
        if f"{module}/a" not in self._factors:
            return weight
        a, b, scale = (np.asarray(self._factors[f"{module}/{part}"][layer], np.float32) for part in ("a", "b", "scale"))
        changed = weight.astype(np.float32) + np.float32(self.sign) * scale * (a @ b)
        magnitude = self._factors.get(f"{module}/magnitude")
        if magnitude is not None:
            changed = _rescaled(changed, np.asarray(magnitude[layer], np.float32))
        return self._cast(name, layer, changed)

    def _cast(self, name: WeightName, layer: int | None, array: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = array.astype(self.dtype(name))
        if not np.isfinite(array).all():
            where = name.in_layer(layer)
            raise UserError(f"{self.source}: {where} has values too large for {array.dtype} with the adapter merged")
        return array


def _rescaled(weight: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Each column at the length that DoRA gives it (arXiv:2402.09353, equation 5); magnitude 0: as it is."""
    length = np.sqrt(np.square(weight).sum(axis=0, dtype=np.float32))
    return weight * np.where(magnitude == 0, np.float32(1), magnitude / np.where(length > 0, length, 1))


def merged(base: Weights, adapter: Adapter) -> MergedWeights:
    """The weights of a base with an adapter merged into them; that it is its base must be known."""
    source = f"{base.source} with {adapter.source}"
    return MergedWeights(source, combined_files(base.files, adapter.files), base, adapter)


def unmerged(weights: Weights, adapter: Adapter) -> MergedWeights:
    """The base that an adapter was merged into, up to the rounding of its type.

    Raises:
        UserError: merging this adapter replaces what was there, which the result does not tell.
    """
    if adapter.saved_modules:
        raise UserError(f"--unmerge: {adapter.source} replaces {' and '.join(adapter.saved_modules)}; keep the base")
    if any(paths.name_of(path) == "magnitude" for path in tree.flatten(adapter.factors)):
        raise UserError(f"--unmerge: {adapter.source} is a DoRA, which replaces the length of columns; keep the base")
    return MergedWeights(f"{weights.source} without {adapter.source}", weights.files, weights, adapter, -1.0)


def combined_files(base: Mapping[str, bytes], adapter: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """What travels with a base and its adapter: the tokenizer of the adapter, if it has one of its own, and its scale
    of rewards."""
    files = with_tokenizer(base, adapter) if has_tokenizer(adapter) else base
    own = {name: content for name, content in adapter.items() if name == NORMALIZATION_FILE}
    return {**without_normalization(files), **own}


def with_tokenizer(files: Mapping[str, bytes], tokenizer: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """What travels with weights, the files of another tokenizer in place of its own."""
    kept = {name: content for name, content in files.items() if not name.startswith(_TOKENIZER_FILES)}
    return {**kept, **tokenizer}
