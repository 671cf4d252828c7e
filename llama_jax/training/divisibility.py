"""What a mesh must divide to train a model, beside its parameters (`core.sharding.shardings_of`)."""

from collections.abc import Callable

from llama_jax.core.placing import indivisible_rows
from llama_jax.model.config import LlamaConfig
from llama_jax.training.config import TrainingConfig


def indivisible(model: LlamaConfig, training: TrainingConfig, sequence_length: int, parts: Callable[[str], int]) -> str:
    """What the devices of a mesh cannot share evenly, as a message that names the setting; nothing where they can.

    Args:
        parts: number of parts that the mesh splits a logical axis into.
    """
    if sequence_length % parts("length"):
        return f"mesh.sequence: data.sequence_length {sequence_length} is not divisible by {parts('length')}"
    # Heads are never cut, though their widths could be.
    if model.num_kv_heads % parts("kv_heads"):
        return f"mesh.tensor: model.num_kv_heads {model.num_kv_heads} is not divisible by {parts('kv_heads')}"
    for _, rows in training.stages:
        if problem := indivisible_rows(rows // training.microbatches, parts("batch")):
            of = f"{rows} rows in {training.microbatches} microbatches of " if training.microbatches > 1 else ""
            return f"training.batch_size: {of}{problem}"
    return ""
