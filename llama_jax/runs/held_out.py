"""The loss on held-out examples, one by one, so that a change can be told from chance."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.files import write_whole
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run import RunDirectory
from llama_jax.core.sharding import local_rows, place_batch, replicated
from llama_jax.model.llama import LanguageModel

_CHUNK = 64


@functools.partial(jax.jit, static_argnums=0)
def row_losses(model: LanguageModel, params: PyTree, batch: TokenBatch) -> Float[Array, "B"]:
    """Sum of -log p(target) over the weighted targets of each row, in nats."""
    head, hidden = model.head(params), model.hidden(params, batch)
    B, T = batch.tokens.shape
    chunk = math.gcd(T, _CHUNK)

    def sums(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        hidden, targets, weights = part
        logits = model.unembed(head, hidden)
        found = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return total + jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - found), axis=1), None

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(B, T // chunk, chunk, *x.shape[2:]), 1, 0)

    total, _ = jax.lax.scan(sums, jnp.zeros(B), (cut(hidden), cut(batch.targets), cut(batch.loss_weights)))
    return total


class HeldOut:
    """Evaluates on the same examples again and again; the first result is what later ones are compared with.

    Args:
        batches: makes the rows of each global batch anew, one example a row, whole on every process; rows without
            loss-bearing tokens are padding.
        run: keeps the first result.
    """

    def __init__(
        self, model: LanguageModel, batches: Callable[[], Iterable[Mapping[str, np.ndarray]]], run: RunDirectory
    ) -> None:
        self._model, self._batches, self._run = model, batches, run
        self._before: np.ndarray | None = None
        self.last: MetricsRecord | None = None
        """The last result."""

    def begin(self, params: PyTree | None) -> float | None:
        """Find the losses before training, or take them from the run directory, where an earlier life has left them.

        Args:
            params: of the untrained model; None where they are gone.

        Returns:
            The mean in nats per loss-bearing token; None where nothing is known of the time before training.
        """
        if not len(self._tokens):
            return None
        if params is not None:
            self._before = self._losses(params)
            if self._run.is_main_process:
                write_whole(self._run.losses_before, json.dumps(self._before.tolist()))
        elif self._run.losses_before.exists():
            self._before = np.array(json.loads(self._run.losses_before.read_text()))
        return None if self._before is None else float(self._before.sum() / self._tokens.sum())

    def __call__(self, params: PyTree) -> MetricsRecord:
        """`validation_loss`, nats per loss-bearing token; where losses before training are known also
        `validation_gain`, how much lower it is, and the standard error of that, paired by example. Nothing where no
        example is held out."""
        if not len(self._tokens):
            return {}
        nats, tokens = self._losses(params), self._tokens
        self.last = {"validation_loss": float(nats.sum() / tokens.sum())}
        if self._before is not None:
            gain, error = paired_gain(self._before, nats, tokens)
            self.last |= {"validation_gain": gain, "validation_gain_standard_error": error}
        return dict(self.last)

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        counts = [rows["loss_weights"].sum(axis=1) for rows in self._batches()]
        return np.concatenate([np.zeros(0), *(count[count > 0] for count in counts)])

    def _losses(self, params: PyTree) -> np.ndarray:
        """Nats of each example."""
        mesh = jax.sharding.get_mesh()
        found = []
        for rows in self._batches():
            size = len(rows["tokens"])
            mine = local_rows(mesh, size)
            batch = place_batch(mesh, {name: array[mine] for name, array in rows.items()}, size)
            losses = jax.device_put(row_losses(self._model, params, batch), replicated(mesh))
            found.append(np.asarray(losses, np.float64)[rows["loss_weights"].sum(axis=1) > 0])
        return np.concatenate(found)


def paired_gain(before: np.ndarray, after: np.ndarray, tokens: np.ndarray) -> tuple[float, float | None]:
    """How much the mean loss per token has fallen, and the standard error of that over the examples drawn: a ratio of
    sums, so the residuals of the examples are taken around it (Cochran, Sampling Techniques, section 6.4). One example
    tells no error."""
    gains = before - after
    gain = gains.sum() / tokens.sum()
    residuals = gains - gain * tokens
    count = len(gains)
    if count < 2:
        return float(gain), None
    return float(gain), float(math.sqrt(count * (residuals**2).sum() / (count - 1)) / tokens.sum())
