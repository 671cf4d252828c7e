"""Plans of steps without a command."""

import functools

from llama_jax.core.batches import TokenBatch
from llama_jax.core.config import MeshConfig
from llama_jax.model.config import AdapterConfig, ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.model.quantized import StorageType
from llama_jax.planning.estimates.layout import Parameter, StepPlan, parameters
from llama_jax.runs.methods import low_rank_adapter
from llama_jax.training.config import TrainingConfig
from llama_jax.training.program import Partition


def step_plan(
    model: LlamaConfig,
    compute: ComputeConfig,
    training: TrainingConfig,
    sequence_length: int,
    mesh: MeshConfig,
    adapter: AdapterConfig | None = None,
    base: StorageType = "float32",
) -> StepPlan:
    """The step of pretraining, or with an adapter that of lora, whose base is stored as `base`."""
    found = parameters_of(model, training.trainable, adapter, base)
    stored = None if adapter is None else base
    return StepPlan(model, compute, training, sequence_length, mesh, TokenBatch, found, stored)


@functools.cache  # cases have them in common
def parameters_of(
    model: LlamaConfig, trainable: str | None, adapter: AdapterConfig | None, base: StorageType
) -> dict[str, Parameter]:
    made = language_model(model, ComputeConfig())
    partition = (
        Partition.of(made, trainable) if adapter is None else low_rank_adapter(adapter, base, 1e-4).partition(made)
    )
    return parameters(partition)
