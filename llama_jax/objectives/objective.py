"""What an objective is, and what it may ask of a model: the contracts between losses, models and the training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from llama_jax.core.arrays import Array, Float, Int, PRNGKeyArray, PyTree, UInt32
from llama_jax.core.batches import Batch

Metrics = dict[str, Float[Array, ""] | Int[Array, ""] | UInt32[Array, ""]]
"""Numbers by name; counts and hashes are integers."""

Loss: TypeAlias = Callable[..., tuple[Float[Array, ""], Metrics]]
"""`(trainable, frozen, batch, rng) -> (loss, metrics)`, where trees of parameters, a batch and a key go in."""


@dataclass(frozen=True)
class Objective:
    """A pure function from parameters and a batch to a loss, and the class of the batches it takes.

    The loss and every metric are sums over the batch divided by a normaliser the batch carries, so that those of
    microbatches only need to be added.
    """

    loss: Loss
    batch: type[Batch]
    totals: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    """`(trainable, frozen, batch) -> sums` over the batch that the loss must know of the whole batch of an update
    before it is found of a microbatch. Such a loss takes them as a fifth argument; without it the batch that it is
    given is whole."""

    def __call__(
        self, trainable: PyTree, frozen: PyTree, batch: PyTree, rng: PRNGKeyArray | None, *totals: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss to differentiate with respect to `trainable`, and what to report. `metrics["loss"]` is required.

        Without `rng` (evaluation) nothing is random. `totals` are those of the whole batch, where this is a
        microbatch of it."""
        return self.loss(trainable, frozen, batch, rng, *totals)


@runtime_checkable
class Model(Protocol):
    """The functions of a model that a loss over tokens needs."""

    def hidden(
        self,
        params: PyTree,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        rng: PRNGKeyArray | None = None,
        *,
        prefix_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]: ...
    def head(self, params: PyTree) -> Float[Array, "D V"]: ...
    def unembed(self, head: Float[Array, "D V"], hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]: ...


@runtime_checkable
class ScoringModel(Protocol):
    """The functions of a model that a loss over scores needs."""

    def hidden(
        self,
        params: PyTree,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]: ...
    def scores(self, params: PyTree, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch"]: ...
