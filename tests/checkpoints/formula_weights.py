"""The weights from which the numbers of outside oracles were recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from small_llamas import BASE, SHAPES, TOKENS, weight
from small_weights import FLOAT32

from llama_jax.checkpoints.formats.weights import WeightName, to_ours
from llama_jax.model.config import LlamaConfig

ORACLE = Path(__file__).parents[1] / "oracle"

__all__ = ["BASE", "ORACLE", "SHAPES", "TOKENS", "FormulaWeights"]


@dataclass(frozen=True)
class FormulaWeights:
    """`Weights` of one of the small LLaMAs."""

    config: LlamaConfig
    files: Mapping[str, bytes] = field(default_factory=dict)
    source: str = "formula"

    def dtype(self, name: WeightName) -> np.dtype:
        return FLOAT32

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        shape = name.shape(self.config)[:: -1 if name.transposed else 1]
        return to_ours(name, weight(name.hugging_face.format(layer), shape), self.config, "hugging_face")
