"""Next-token cross-entropy: the loss of pretraining and supervised fine-tuning."""

from llama_jax.core import tree
from llama_jax.core.arrays import Array, Float, PRNGKeyArray, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.objectives.cross_entropy import summed_cross_entropy
from llama_jax.objectives.objective import Metrics, Model, Objective


def next_token(model: Model, z_loss: float = 0.0) -> Objective:
    """The mean negative log-likelihood of the targets in nats per token, plus `z_loss` times the mean of log(Z)^2
    (PaLM, arXiv:2204.02311, section 5), both weighted by `loss_weights`."""

    def loss(
        trainable: PyTree, frozen: PyTree, batch: TokenBatch, rng: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], Metrics]:
        params = tree.join(trainable, frozen)
        weights = batch.loss_weights / batch.normalizer
        head = model.head(params)
        hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids, rng)
        nll, square = summed_cross_entropy(model.unembed, z_loss, head, hidden, batch.targets, weights)
        metrics = {"loss": nll}
        if z_loss:
            metrics["z_loss"] = z_loss * square
        return nll + z_loss * square, metrics

    return Objective(loss, TokenBatch)
