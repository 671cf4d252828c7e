"""Proof of a conversion: the result, opened again, must compute the same logits as its source."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llama_jax.checkpoints.adapters.merged_weights import MergedWeights
from llama_jax.checkpoints.config import ConvertConfig
from llama_jax.checkpoints.formats.weights import Weights, weight_names
from llama_jax.checkpoints.opening import ModelReference, open_params, with_adapters
from llama_jax.checkpoints.weight_reading import open_adapter
from llama_jax.core import placing, sharding
from llama_jax.core.arrays import PyTree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.mesh import make_mesh
from llama_jax.data.tokenizers import has_tokenizer, tokenizer_from_files
from llama_jax.model.config import ComputeConfig
from llama_jax.objectives.cross_entropy import logprobs_of

_SAMPLE = """The sun had set behind the hills when Anna reached the village. "You are late," said her brother, and
closed the door. In 1969 two people walked on the Moon; the third stayed in orbit, 110 km above them.

def area(radius: float) -> float:
    return 3.14159 * radius ** 2  # in square metres

Zürich, Α–Ω, 北京, 🙂 — and so on.
"""
_SAMPLE_TOKENS = 256
_ROUNDING = 0.05
"""Largest mean difference of logits, in units of their standard deviation, that a coarser type may cause."""
_REORDERING = 1e-4
"""The same for sums in float32 in another order."""


def check_conversion(
    config: ConvertConfig, source: Weights, written: str, target_dtypes: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """How the result compares with the source on text.

    Args:
        config: of the conversion, its `source` found.
        written: where the result is, which has not been given its name yet.
        target_dtypes: types of its weights.

    Raises:
        CannotGoOnError: it is not the same model.
    """
    tokens, kind = _sample(source)
    before, after = _compared(config, source, written, tokens, say)
    difference = np.abs(before - after)
    check = {
        "tokens": tokens.size,
        "kind": kind,
        "max_logit_difference": float(difference.max()),
        "mean_logit_difference": float(difference.mean()),
        "logit_standard_deviation": float(before.std()),
        "argmax_agreement": float((before.argmax(-1) == after.argmax(-1)).mean()),
        "source_loss": _loss(before, tokens),
        "target_loss": _loss(after, tokens),
        "uniform_loss": math.log(source.config.vocab_size),
    }
    say(
        f"checked on {tokens.size} tokens of {kind}: largest difference of logits {check['max_logit_difference']:.2e}, "
        f"mean {check['mean_logit_difference']:.2e}, same most likely token at {check['argmax_agreement']:.1%}; "
        f"loss {check['source_loss']:.3f} -> {check['target_loss']:.3f} nats per token"
    )
    if kind == "text" and check["source_loss"] > check["uniform_loss"]:
        say("note: the source predicts this text worse than chance; is it trained, and is this its tokenizer?")
    allowed = _allowed(config, source, target_dtypes) * check["logit_standard_deviation"]
    if check["mean_logit_difference"] > allowed:
        raise CannotGoOnError(
            f"{config.target}: not written, the result differs from {config.source} by "
            f"{check['max_logit_difference']:.2e} in a logit"
        )
    return check


def _allowed(config: ConvertConfig, source: Weights, target_dtypes: Sequence[str]) -> float:
    """Largest mean difference of logits, in units of their standard deviation, that is not a mistake."""
    types = {str(source.dtype(name)) for name in weight_names(source.config)}
    merges = isinstance(source, MergedWeights) and config.format != "peft"
    if config.dtype == "q8_0" or types != set(target_dtypes) or (merges and types != {"float32"}):
        return _ROUNDING
    # A merged matrix is another order of summation.
    return _REORDERING if isinstance(source, MergedWeights) else 0.0


def _sample(weights: Weights) -> tuple[np.ndarray, str]:
    """Tokens [1, T] to compare the models on, and what they are: text, or random where no tokenizer is known."""
    length = min(_SAMPLE_TOKENS, weights.config.context_length)
    if has_tokenizer(weights.files):
        tokenizer = tokenizer_from_files(weights.files, weights.source)
        return np.array([tokenizer.encode(_SAMPLE, bos=tokenizer.adds_bos)[:length]], np.int32), "text"
    return np.random.default_rng(0).integers(0, weights.config.vocab_size, (1, length), np.int32), "random tokens"


def _compared(
    config: ConvertConfig, source: Weights, written: str, tokens: np.ndarray, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of what there was and of what there is now, adapters beside their base and not merged where they are
    known."""
    before, after = ModelReference(str(config.source), config.step), ModelReference(written)
    if config.unmerge:
        return _logits(before, None, tokens, say), _logits(after, config.adapter, tokens, say)
    adapter = None
    if config.format == "peft" and isinstance(source, MergedWeights):
        after, adapter = ModelReference(str(source.adapter.base_name), source.adapter.base_step), written
    return _logits(before, config.adapter, tokens, say), _logits(after, adapter, tokens, say)


def _logits(
    reference: ModelReference, adapter: str | None, tokens: np.ndarray, say: Callable[[str], None]
) -> np.ndarray:
    """Logits [T, V] of a model; with an adapter, over whatever base it is."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        opened = open_params(reference, ComputeConfig(), identify=False, say=say)
        if adapter is not None:
            read = open_adapter(adapter, step=None, say=say).read(opened.model.config)
            opened = with_adapters(opened, [read], any_base=True)
        rows = placing.placed(np.tile(tokens, (sharding.batch_parts(mesh), 1)), sharding.row_sharding(mesh))
        logits: PyTree = jax.jit(opened.model.logits)(opened.params, rows)
        return np.asarray(logits[0])


def _loss(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Mean of -log p(next token), in nats."""
    return -float(logprobs_of(jax.numpy.asarray(logits[:-1]), jax.numpy.asarray(tokens[0, 1:]))[0].mean())
