"""What an objective is: the contract between losses and the training step."""

from typing import Protocol, runtime_checkable

from llama_jax.core.arrays import Array, Float, Int, PRNGKeyArray, PyTree, UInt32

Metrics = dict[str, Float[Array, ""] | Int[Array, ""] | UInt32[Array, ""]]
"""Numbers by name; counts and hashes are integers."""


@runtime_checkable
class Objective(Protocol):
    """A pure function from parameters and a batch to a loss.

    The loss and every metric are sums over the batch divided by a normaliser the batch carries, so that those of
    microbatches only need to be added.
    """

    def __call__(
        self, trainable: PyTree, frozen: PyTree, batch: PyTree, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss to differentiate with respect to `trainable`, and what to report. `metrics["loss"]` is required.

        Without `rng` (evaluation) nothing is random."""
        ...
