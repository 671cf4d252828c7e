"""A training run as compiled functions over a mesh: what every training command builds, and `fit`, plans and
benchmarks take."""

import functools
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llama_jax.core import placing, sharding, tree
from llama_jax.core.arrays import PRNGKeyArray, PyTree
from llama_jax.core.batches import Batch
from llama_jax.core.chips import CHIPS
from llama_jax.core.errors import UserError
from llama_jax.model.config import LlamaConfig
from llama_jax.model.flops import flops_per_token
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.objective import Objective
from llama_jax.training.config import TrainingConfig
from llama_jax.training.optimizer import RateOf, adamw
from llama_jax.training.state import TrainState
from llama_jax.training.step import Step, init_state, make_step


@dataclass(frozen=True)
class Partition:
    """The parameters of a run and which of them train. A leaf that does not is read by the step, and nothing else: it
    has no gradient and no moments.

    LoRA is one such partition: the base does not train and the factors, a subtree `lora` beside it, do.
    """

    init: Callable[[PRNGKeyArray], PyTree]
    """Fresh parameters; traced for their shapes."""
    axes: PyTree
    """Logical axes of each, as a `PartitionSpec` of names."""
    decays: Container[str]
    """Paths of those that weight decay applies to, where they train."""
    is_trainable: Callable[[str], bool]
    """By path."""
    rate_of: RateOf | None = None
    """Factor on the learning rate, by path; None: the same rate for all."""

    @staticmethod
    def of(model: LanguageModel, pattern: str | None) -> "Partition":
        """The parameters of a model, of which those train whose path matches the regular expression; None: all.

        Raises:
            UserError: it is not a regular expression, or matches nothing.
        """
        return Partition(model.init, model.axes, model.decays, _selector(pattern, model.axes))


@dataclass(frozen=True)
class Program:
    """The functions of a run and the shapes of what they carry. Nothing is allocated until `init` is called. All is
    to be used under `jax.set_mesh(program.mesh)`."""

    mesh: Mesh
    model: LanguageModel
    config: TrainingConfig
    sequence_length: int
    batch: type[Batch]
    """Class of the batches that the objective takes."""
    init: Callable[[PRNGKeyArray], tuple[TrainState, PyTree]]
    """Fresh state and frozen parameters, made where they live."""
    begin: Callable[[PyTree], tuple[TrainState, PyTree]]
    """State and frozen parameters from parameters that are there already; those that train give their memory."""
    step: Step
    """Jitted, with the state donated."""
    state_shapes: TrainState
    """Shape, type and sharding of each leaf of the state."""
    frozen_shapes: PyTree
    """The same of the frozen parameters."""
    partition: Partition
    """Which parameters there are, and which train."""

    def batch_shapes(self, rows: int) -> Batch:
        """Shape, type and sharding of a batch."""
        return placing.batch_shapes(self.mesh, self.batch, rows, self.sequence_length)

    def place_batch(self, rows: Mapping[str, np.ndarray], batch_size: int) -> Batch:
        """A batch on the mesh, made from the rows of this process; see `core.placing.place_batch`."""
        return placing.place_batch(self.mesh, self.batch, rows, batch_size)

    @functools.cached_property
    def flops_per_token(self) -> int:
        """Model FLOPs of one trained token. Kept, since counting them traces the model and every step asks."""
        trained = None if self.trains_all else self.state_shapes.trainable
        return flops_per_token(self.model, self.sequence_length, trained)

    def rates(self, tokens: int, seconds: float) -> dict[str, float | None]:
        """Tokens per second of steps that took `seconds` for `tokens`, and the model FLOPs utilization by the dense
        bfloat16 peak of the devices; None where that is not known: no utilization is better than a wrong one."""
        per_second, devices = tokens / seconds, self.mesh.size
        chip = CHIPS.get(self.mesh.devices.flat[0].device_kind)
        utilization = None if chip is None else per_second * self.flops_per_token / (devices * chip.flops)
        return {
            "tokens_per_second": per_second,
            "tokens_per_second_per_device": per_second / devices,
            "model_flops_utilization": utilization,
        }

    @property
    def trains_all(self) -> bool:
        """No parameter is frozen."""
        return not jax.tree.leaves(self.frozen_shapes)

    def tokens_until(self, step: int) -> int:
        """Tokens in the batches before the given step."""
        return self.config.rows_until(step) * self.batch.tokens_per_row(self.sequence_length)


def make_program(
    model: LanguageModel,
    objective: Objective,
    config: TrainingConfig,
    sequence_length: int,
    seed: int,
    partition: Partition | None = None,
) -> Program:
    """Lay the run out over the mesh in use (`jax.set_mesh`).

    Args:
        partition: the parameters and which of them train; None: those of the model, by `config.trainable`.

    Raises:
        UserError: mesh, batch, parameters, texts and context do not fit, or `config.trainable` selects nothing.
    """
    mesh = jax.sharding.get_mesh()
    _check_rows(mesh, model, config, sequence_length, objective.batch.longest_sequence(sequence_length))
    partition = partition or Partition.of(model, config.trainable)
    select = partition.is_trainable
    # The key within: on devices that are only compiled for, none can be made.
    shapes = jax.eval_shape(lambda: partition.init(jax.random.key(0)))
    places = sharding.shardings_of(mesh, shapes, partition.axes)
    trainable_shapes, frozen_shapes = tree.split(shapes, select)
    frozen_places = tree.split(places, select)[1]
    optimizer = adamw(config, partition.decays, partition.rate_of)
    fresh = functools.partial(init_state, optimizer, config)
    state_shapes = jax.eval_shape(fresh, trainable_shapes)
    state_places = sharding.shardings_like(mesh, state_shapes, places)

    def init(key: PRNGKeyArray) -> tuple[TrainState, PyTree]:
        trainable, frozen = tree.split(partition.init(key), select)
        return fresh(trainable), frozen

    def begin(params: PyTree) -> tuple[TrainState, PyTree]:
        # What is placed already stays where it is.
        trainable, frozen = tree.split(jax.device_put(params, places), select)
        return jax.jit(fresh, out_shardings=state_places, donate_argnums=0)(trainable), frozen

    step = jax.jit(
        make_step(objective, optimizer, config, seed),
        donate_argnums=0,
        out_shardings=(state_places, sharding.replicated(mesh)),
        compiler_options=_compiler_options(mesh, frozen_shapes),
    )
    return Program(
        mesh=mesh,
        model=model,
        config=config,
        sequence_length=sequence_length,
        batch=objective.batch,
        init=jax.jit(init, out_shardings=(state_places, frozen_places)),
        begin=begin,
        step=step,
        state_shapes=sharding.with_shardings(state_shapes, state_places),
        frozen_shapes=sharding.with_shardings(frozen_shapes, frozen_places),
        partition=partition,
    )


def _check_rows(mesh: Mesh, model: LanguageModel, config: TrainingConfig, sequence_length: int, longest: int) -> None:
    context = model.config.context_length
    if longest > context and longest == sequence_length:
        raise UserError(f"data.sequence_length: {sequence_length} exceeds model.context_length {context}")
    if longest > context:
        raise UserError(
            f"data.max_length: {longest} tokens of a prompt with its answer exceed model.context_length {context}; "
            f"give {context} or less"
        )
    if problem := indivisible(model.config, config, sequence_length, lambda axis: sharding.size_of(axis, mesh)):
        raise UserError(problem)


def indivisible(model: LlamaConfig, training: TrainingConfig, sequence_length: int, parts: Callable[[str], int]) -> str:
    """What the devices of a mesh cannot share evenly to train a model, beside its parameters, as a message that names
    the setting; nothing where they can.

    Args:
        parts: number of parts that the mesh splits a logical axis into.
    """
    if sequence_length % parts("length"):
        return f"mesh.sequence: data.sequence_length {sequence_length} is not divisible by {parts('length')}"
    # Heads are never cut, though their widths could be.
    if model.num_kv_heads % parts("kv_heads"):
        return f"mesh.tensor: model.num_kv_heads {model.num_kv_heads} is not divisible by {parts('kv_heads')}"
    for _, rows in training.stages:
        if problem := placing.indivisible_rows(rows // training.microbatches, parts("batch")):
            of = f"{rows} rows in {training.microbatches} microbatches of " if training.microbatches > 1 else ""
            return f"training.batch_size: {of}{problem}"
    return ""


def _compiler_options(mesh: Mesh, frozen_shapes: PyTree) -> dict[str, str | bool | int] | None:
    if mesh.devices.flat[0].platform != "cpu":
        return None
    options: dict[str, str | bool | int] = {
        # Without it XLA for CPU does not see that moments can be written where they are read, and copies all of them.
        "xla_cpu_copy_insertion_use_region_analysis": True,
        # Of the registers there are: the default is half of AVX-512's.
        "xla_cpu_prefer_vector_width": 512,
    }
    # XLA for CPU takes no slices of bfloat16 arrays: it converts the weights of all layers to float32 to take one
    # layer's, which is harmless inside of the loop over layers (only the slice is computed), but moved out of the loop,
    # as it then is, makes a copy of the whole base, twice its size.
    if any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(frozen_shapes)):
        options["xla_disable_hlo_passes"] = "while-loop-invariant-code-motion"
    return options


def _selector(pattern: str | None, parameters: PyTree) -> Callable[[str], bool]:
    if pattern is None:
        return lambda path: True
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"training.trainable: '{pattern}' is not a regular expression: {error}") from None
    paths = list(tree.flatten(parameters))
    if not any(map(expression.search, paths)):
        raise UserError(f"training.trainable: '{pattern}' matches no parameter; there are {', '.join(paths)}")
    return lambda path: expression.search(path) is not None
