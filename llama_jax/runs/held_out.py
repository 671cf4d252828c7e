"""The loss on what training never sees: of a text as a whole, and of examples one by one, so that a change can be told
from chance."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.core.arrays import Array, Float, PyTree
from llama_jax.core.batches import TokenBatch
from llama_jax.core.files import write_whole
from llama_jax.core.placing import place_whole_batch
from llama_jax.core.recording.metrics import MetricsRecord
from llama_jax.core.run_directory import RunDirectory
from llama_jax.core.sharding import replicated
from llama_jax.model.llama import LanguageModel
from llama_jax.objectives.next_token import next_token
from llama_jax.objectives.token_logprobs import token_logprobs
from llama_jax.runs.verdict import Verdict

_CHUNK = 64
"""Positions of a row that are added up together, and then one sum after the other."""


@functools.partial(jax.jit, static_argnums=0)
def row_losses(model: LanguageModel, params: PyTree, batch: TokenBatch) -> Float[Array, "B"]:
    """Sum of -log p(target) over the weighted targets of each row, in nats."""
    head = model.head(params)
    hidden = model.hidden(params, batch.tokens, batch.positions, batch.segment_ids)
    nll = batch.loss_weights * -token_logprobs(model.unembed, head, hidden, batch.targets)
    B, T = nll.shape
    chunks = jnp.moveaxis(nll.reshape(B, -1, math.gcd(T, _CHUNK)), 1, 0)
    return jax.lax.scan(lambda total, chunk: (total + chunk.sum(axis=1), None), jnp.zeros(B), chunks)[0]


@functools.partial(jax.jit, static_argnums=0)
def summed_loss(model: LanguageModel, params: PyTree, batch: TokenBatch) -> Float[Array, ""]:
    """Sum of -log p(target) over the weighted targets of a batch, in nats."""
    sums = batch.replace(normalizer=jnp.ones_like(batch.normalizer))
    return next_token(model)(params, {}, sums, None)[1]["loss"]


def perplexity(
    model: LanguageModel, params: PyTree, batches: Iterable[Mapping[str, np.ndarray]], text_bytes: int
) -> dict[str, Any]:
    """Score every target of the batches once.

    Args:
        params: scanned layout, on the mesh in use.
        batches: rows of each global batch, whole on every process, all of one size.
        text_bytes: UTF-8 bytes of the text that the targets cover.

    Returns:
        See `per_unit`.
    """
    nats, tokens = 0.0, 0
    for rows in batches:
        nats += float(summed_loss(model, params, _placed(rows)))
        tokens += int(rows["loss_weights"].sum())
    return per_unit(nats, tokens, text_bytes)


def per_unit(nats: float, tokens: int, text_bytes: int) -> dict[str, Any]:
    """The total -log p of a text by its units.

    Returns:
        `loss` (nats per token, the ends of documents included), `perplexity`, `bits_per_byte`, `tokens`, `bytes`.
    """
    return {
        "loss": nats / tokens,
        "perplexity": bounded_exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
        "bytes": text_bytes,
    }


def bounded_exp(nats: float) -> float:
    """exp, but for numbers that have none as a float."""
    return math.exp(min(nats, 700.0))


def _placed(rows: Mapping[str, np.ndarray]) -> TokenBatch:
    return place_whole_batch(jax.sharding.get_mesh(), TokenBatch, rows, len(rows["tokens"]))


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
        self._last: np.ndarray | None = None

    def begin(self, params: PyTree | None) -> list[str]:
        """Find the losses before training, or take them from the run directory, where an earlier life has left them.

        Args:
            params: of the untrained model; None where they are gone.

        Returns:
            What to say of it; nothing where it was said before.
        """
        if not len(self._tokens):
            return []
        if params is None:
            if self._run.losses_before.exists():
                self._before = np.array(json.loads(self._run.losses_before.read_text()))
            return []
        self._before = self._losses(params)
        if self._run.is_main_process:
            write_whole(self._run.losses_before, json.dumps(self._before.tolist()))
        return [
            f"held-out loss before training: {self._before.sum() / self._tokens.sum():.4f} nats per loss-bearing token"
        ]

    def __call__(self, params: PyTree) -> MetricsRecord:
        """`validation_loss`, nats per loss-bearing token; where losses before training are known also
        `validation_gain`, how much lower it is, and the standard error of that, paired by example. Nothing where no
        example is held out."""
        if not len(self._tokens):
            return {}
        self._last = self._losses(params)
        record: MetricsRecord = {"validation_loss": float(self._last.sum() / self._tokens.sum())}
        if self._before is not None:
            gain, error = paired_gain(self._before, self._last, self._tokens)
            record |= {"validation_gain": gain, "validation_gain_standard_error": error}
        return record

    def result(self) -> list[str]:
        """What to say of the last evaluation where there is no verdict."""
        if self._last is None or self._before is not None:
            return []
        return [f"held-out loss: {self._last.sum() / self._tokens.sum():.4f} nats per loss-bearing token"]

    @property
    def verdict(self) -> Verdict | None:
        """The last loss beside the one before training."""
        if self._last is None or self._before is None:
            return None
        tokens = self._tokens
        return Verdict(
            name="held-out loss",
            figure=float(self._last.sum() / tokens.sum()),
            standard_error=paired_gain(self._last, np.zeros_like(self._last), tokens)[1],
            baseline_name="before training",
            baseline=float(self._before.sum() / tokens.sum()),
            difference_error=paired_gain(self._before, self._last, tokens)[1],
            count=len(tokens),
            unit="nats per token",
            lower_is_better=True,
        )

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        counts = [rows["loss_weights"].sum(axis=1) for rows in self._batches()]
        return np.concatenate([np.zeros(0), *(count[count > 0] for count in counts)])

    def _losses(self, params: PyTree) -> np.ndarray:
        """Nats of each example."""
        mesh = jax.sharding.get_mesh()
        found = []
        for rows in self._batches():
            losses = jax.device_put(row_losses(self._model, params, _placed(rows)), replicated(mesh))
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
