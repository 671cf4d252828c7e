"""Which parameters decay is what their declarations say: every matrix, and no vector."""

import jax
import numpy as np
import pytest

from llama_jax.core import tree
from llama_jax.model.config import SIZES, AdapterConfig, ComputeConfig
from llama_jax.model.llama import language_model
from llama_jax.runs.methods import low_rank_adapter
from llama_jax.training.config import TrainingConfig
from llama_jax.training.optimizer import adamw
from llama_jax.training.program import Partition

MODEL = language_model(SIZES["tiny"], ComputeConfig())
LINEARS = [f"attention/{name}_proj" for name in "qkvo"] + [f"mlp/{name}_proj" for name in ("gate", "up", "down")]
MATRICES = {"embedding/table", "lm_head/kernel", *(f"layers/{linear}/kernel" for linear in LINEARS)}
NORMS = {"final_norm/scale", "layers/attention_norm/scale", "layers/mlp_norm/scale"}
FACTORS = {f"lora/layers/attention/{name}_proj/{factor}" for name in "qv" for factor in "ab"}
MAGNITUDES = {f"lora/layers/attention/{name}_proj/magnitude" for name in "qv"}


def decayed(partition: Partition) -> tuple[set[str], set[str]]:
    """Paths of the parameters that AdamW shrinks where gradients are 0, and of those that it leaves alone."""
    shapes = jax.eval_shape(lambda: partition.init(jax.random.key(0)))
    trainable, _ = tree.split(shapes, partition.is_trainable)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), trainable)
    optimizer = adamw(TrainingConfig(weight_decay=0.1), partition.decays)
    zeros = jax.tree.map(np.zeros_like, ones)
    updates = jax.device_get(jax.jit(lambda *trees: optimizer.update(zeros, optimizer.init(ones), *trees)[0])(ones))
    shrunk = {path for path, update in tree.flatten(updates).items() if (update < 0).all()}
    kept = {path for path, update in tree.flatten(updates).items() if (update == 0).all()}
    return shrunk, kept


def test_of_a_model_matrices_decay_and_norms_do_not() -> None:
    assert decayed(Partition.of(MODEL, None)) == (MATRICES, NORMS)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("dora", [False, True])
def test_of_an_adapter_factors_and_saved_matrices_decay_and_magnitudes_do_not(dora, storage) -> None:
    config = AdapterConfig(dora=dora, modules_to_save=("embedding", "lm_head"))
    partition = low_rank_adapter(config, storage, 1e-4).partition(MODEL)
    saved = {"embedding/table", "lm_head/kernel"}
    assert decayed(partition) == (FACTORS | saved, MAGNITUDES if dora else set())


def test_no_array_of_a_quantised_kernel_decays() -> None:
    partition = low_rank_adapter(AdapterConfig(), "nf4", 1e-4).partition(MODEL)
    shapes = jax.eval_shape(lambda: partition.init(jax.random.key(0)))
    codes = {path for path in tree.flatten(shapes) if "/kernel/" in path}
    assert len(codes) == 4 * len(LINEARS)
    assert not any(path in partition.decays for path in codes)
