"""Which parameters a run has, which of them train and which its checkpoints hold: all parameters, or a LoRA adapter
beside a base that stays as it is. Independent of the loss and the data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from llama_jax.checkpoints.adapters.adapter import ADAPTER_FILE, adapter_config_json
from llama_jax.core import tree
from llama_jax.core.arrays import PRNGKeyArray, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model import paths
from llama_jax.model.attention.choice import Shapes
from llama_jax.model.config import AdapterConfig, LlamaConfig
from llama_jax.model.llama import LanguageModel, drawn_score, language_model
from llama_jax.model.lora import (
    adapter_axes,
    adapter_decays,
    init_adapter,
    is_trainable,
    merge,
    with_adapter,
    without_adapter,
)
from llama_jax.model.lora import partition as parted
from llama_jax.model.quantized import StorageType, store_as, stored_axes
from llama_jax.objectives.objective import Objective
from llama_jax.runs.config import RunConfig
from llama_jax.runs.measured_attention import measure_attention
from llama_jax.training.program import Partition, Program, make_program


def _of_language_model(config: LlamaConfig) -> LlamaConfig:
    if config.scalar_head:
        raise UserError("--model: is a reward model, which has lost its output matrix; take a language model")
    return config


@dataclass(frozen=True)
class Method:
    """What a way of training does with a model."""

    partition: Callable[[LanguageModel], Partition]
    """The parameters of the run and which of them train."""
    begin: Callable[[PyTree, PRNGKeyArray], PyTree]
    """All parameters of a run that begins with a model, from those of the model. May use their memory."""
    store: StorageType = "float32"
    """How the parameters of the model are kept."""
    architecture: Callable[[LlamaConfig], LlamaConfig] = _of_language_model
    """That of the model that is trained, from that of the one it begins with."""
    dropout: float = 0.0
    """Before the factors of an adapter."""
    params_item: str = "params"
    """See `Task.params_item`."""
    is_saved: Callable[[str], bool] = lambda path: True
    """Which parameters a checkpoint holds, by path. The others are the model's, opened again when a run is resumed."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files for each checkpoint."""
    free_on_resume: tuple[str, ...] = ()
    """Settings that may differ when a run is resumed, beside those of every run."""


def all_parameters(trainable: str | None = None) -> Method:
    """The parameters of the model, which all train, or those whose path the regular expression matches."""

    def begin(params: PyTree, key: PRNGKeyArray) -> PyTree:
        del key  # nothing is drawn
        return merge(params)  # of a model with an adapter, what the two make together is trained on

    return Method(partition=lambda model: Partition.of(model, trainable), begin=begin)


def low_rank_adapter(config: AdapterConfig, store: StorageType, peak_learning_rate: float) -> Method:
    """LoRA as a partition of the parameters: the factors, below `lora/`, and the modules to save train.

    Args:
        store: type in which the base is kept.
        peak_learning_rate: of the modules to save, and of the factors unless the config says otherwise.
    """
    trains = is_trainable(config)

    def begin(base: PyTree, key: PRNGKeyArray) -> PyTree:
        if "lora" in base:
            raise UserError(
                "--model: is an adapter over a base; merge the two first (llama-jax convert --source … --target merged "
                "--format hf), and give --model merged"
            )
        return tree.join(*parted(with_adapter(base, init_adapter(config, base, key)), config))

    def partition(model: LanguageModel) -> Partition:
        def init(key: PRNGKeyArray) -> PyTree:
            of_base, of_adapter = jax.random.split(key)
            return begin(store_as(model.init(of_base), store), of_adapter)

        base, adapter = without_adapter(jax.eval_shape(lambda: init(jax.random.key(0))))
        axes = with_adapter(stored_axes(model.axes, base), adapter_axes(adapter, model.axes))
        decays = model.decays | adapter_decays(adapter)
        return Partition(init, axes, decays, trains, None if config.learning_rate is None else rate_of)

    def rate_of(path: str) -> float:
        own = config.learning_rate
        return own / peak_learning_rate if own is not None and paths.is_adapter(path) else 1.0

    return Method(
        partition=partition,
        begin=lambda base, key: jax.jit(begin)(base, key),
        store=store,
        dropout=config.dropout,
        params_item="adapter",
        is_saved=lambda path: paths.is_adapter(path) or trains(path),
        files={ADAPTER_FILE: adapter_config_json(config)},
        free_on_resume=("model", "step"),  # its checkpoints know the base by its values
    )


def with_scalar_head(method: Method) -> Method:
    """The same way of training, of a model that gives one number a position: a language model loses its output matrix
    and is given a fresh scalar head; a reward model keeps its own. The head always trains, in float32, and is always
    saved."""

    def begin(params: PyTree, key: PRNGKeyArray) -> PyTree:
        of_head, of_rest = jax.random.split(key)
        kept = {name: subtree for name, subtree in params.items() if name != "lm_head"}
        if "score" not in kept:
            (width,) = params["final_norm"]["scale"].shape
            kept["score"] = {"kernel": drawn_score(of_head, (width, 1))}
        return trained_head(method.begin(kept, of_rest))

    def trained_head(params: PyTree) -> PyTree:
        return params | {"score": tree.cast(params["score"], jnp.dtype("float32"))}

    def partition(model: LanguageModel) -> Partition:
        parts = method.partition(model)
        return replace(
            parts,
            init=lambda key: trained_head(parts.init(key)),
            is_trainable=lambda path: path == paths.SCORE or parts.is_trainable(path),
        )

    return replace(
        method,
        partition=partition,
        begin=begin,
        architecture=lambda config: replace(config, scalar_head=True),
        is_saved=lambda path: path == paths.SCORE or method.is_saved(path),
    )


def build_program(
    config: RunConfig,
    method: Method,
    objective: Callable[[LanguageModel], Objective],
    architecture: LlamaConfig,
    sequence_length: int,
    devices: Sequence[Any] | None = None,
) -> Program:
    """The run as compiled functions over the mesh of its config, on the given devices or on all; what it allocates, to
    measure attention on GPUs, is free again."""
    model, training = language_model(method.architecture(architecture), config.compute, method.dropout), config.training
    with jax.set_mesh(make_mesh(config.mesh, devices)):
        partition = method.partition(model)
        if config.compute.attention == "auto":
            rows = training.batch_size // training.microbatches
            measure_attention(Shapes.of_whole_rows(model.config, config.compute, rows, sequence_length))
        return make_program(model, objective(model), training, sequence_length, config.seed, partition)
