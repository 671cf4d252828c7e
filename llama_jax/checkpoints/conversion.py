"""Turning a model from one format into another. What is written gets its name once it has proved to be that model:
opened again, it must compute the same logits, or scores, as its source."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from llama_jax.checkpoints.adapters.adapter import PEFT_BASE_FILE
from llama_jax.checkpoints.adapters.merged_weights import MergedWeights, unmerged, with_tokenizer
from llama_jax.checkpoints.adapters.peft import write_peft
from llama_jax.checkpoints.config import ConvertConfig
from llama_jax.checkpoints.conversion_target import find_target, written_files
from llama_jax.checkpoints.finding import ModelFormat
from llama_jax.checkpoints.formats.directories import read_bundle
from llama_jax.checkpoints.formats.gguf import write_gguf
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.llama2c import write_llama2c
from llama_jax.checkpoints.formats.meta import write_meta
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.formats.weights import Weights, tensors_of, weight_names
from llama_jax.checkpoints.opening import ANY, ModelReference, find_model, open_params, with_adapters
from llama_jax.checkpoints.steps.manifest import files_below
from llama_jax.checkpoints.tokenizer_check import compared_tokenizers
from llama_jax.checkpoints.weight_reading import open_adapter, open_weights
from llama_jax.core import placing, sharding, tree
from llama_jax.core.arrays import Array, Float, Int, PyTree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import CannotGoOnError, UserError
from llama_jax.core.files import missing_folders, remove_empty
from llama_jax.core.mesh import make_mesh
from llama_jax.core.processes.signals import remove_at_a_sudden_end
from llama_jax.data.tokenizers import has_tokenizer, load_tokenizer, tokenizer_from_files
from llama_jax.model.config import ComputeConfig
from llama_jax.objectives.cross_entropy import logprobs_of

_DIRECTORIES: tuple[ModelFormat, ...] = ("orbax", "hf", "meta", "peft")
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
_NONSENSE = 10.0
"""Times the loss of the uniform distribution from which on equal logits prove nothing: neither training nor random
weights lead there, but other bytes read as weights do."""


def convert_model(config: ConvertConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the target that the settings ask for, and its report; see `_facts` and `_check_conversion`.

    Raises:
        UserError: a setting is wrong, or the target cannot hold such a model.
        CannotGoOnError: the result is not the same model.
    """
    started = time.perf_counter()
    target = find_target(config.target, is_directory=config.format in _DIRECTORIES, overwrite=config.overwrite)
    target.clean_up()
    target.check((config.source, config.adapter, config.tokenizer))
    config = dataclasses.replace(config, source=find_model(config.source, say, kinds=ANY))
    weights = _source(config, say)
    base = weights.adapter.base_name if isinstance(weights, MergedWeights) else None
    sources = (config.source, config.adapter, config.tokenizer, base)
    target.check(sources)
    made = missing_folders(target.path.parent)
    # Written beside the target and moved when it has proved itself: nothing half-written ever has the name asked for.
    partial = target.partial
    try:
        partial.mkdir(parents=True)
        written = partial if target.is_directory else partial / target.path.name
        say(f"converting {weights.source} ({_size(weights):,} parameters) to {config.format}")
        remove_at_a_sudden_end(partial)
        _WRITERS[config.format](written, weights, config)
        report = _facts(config, weights, written, say)
        if not config.no_check:
            report["check"] = _check_conversion(config, weights, str(written), report["target_dtypes"], say)
            report["check"]["tokenizer"] = _check_tokenizer(config, weights, written, say)
        report["seconds"] = round(time.perf_counter() - started, 1)
        report["files"] = written_files(partial)
        (partial / target.report.name).write_text(json.dumps(report, indent=2))
        target.place(partial, sources)
    finally:
        if partial.exists():
            partial.rmtree()
        remove_empty(made)
    say(f"wrote {config.target} in {report['seconds']} s")
    return report


def _source(config: ConvertConfig, say: Callable[[str], None]) -> Weights:
    source = str(config.source)
    adapter = None if config.unmerge else config.adapter
    weights = open_weights(source, step=config.step, say=say, adapter=adapter)
    if config.unmerge:
        weights = unmerged(weights, open_adapter(str(config.adapter), step=None, say=say).read(weights.config))
    if config.format == "peft" and not isinstance(weights, MergedWeights):
        raise UserError(f"--format peft: writes an adapter, which {source} is not; give one with --adapter")
    if config.tokenizer is not None:
        files = with_tokenizer(weights.files, load_tokenizer(config.tokenizer).files())
        weights = dataclasses.replace(weights, files=files)  # pyright: ignore[reportArgumentType]
    return weights


def _write_llama2c(target: epath.Path, weights: Weights, config: ConvertConfig) -> None:
    if config.dtype not in ("auto", "float32"):
        raise UserError(f"--dtype {config.dtype}: llama2c's format is float32")
    write_llama2c(target, weights)


def _write_gguf(target: epath.Path, weights: Weights, config: ConvertConfig) -> None:
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "auto": None}
    write_gguf(target, weights, dtype=names[config.dtype])


def _write_peft(target: epath.Path, weights: Weights, config: ConvertConfig) -> None:
    assert isinstance(weights, MergedWeights)
    write_peft(target, dataclasses.replace(weights.adapter, files=weights.files), weights.config)
    if weights.adapter.base is not None:
        (target / PEFT_BASE_FILE).write_bytes(weights.adapter.base.to_json())


_WRITERS: Mapping[ModelFormat, Callable[[epath.Path, Weights, ConvertConfig], None]] = {
    "orbax": lambda target, weights, config: write_orbax(target, weights, dtype=_dtype(config)),
    "hf": lambda target, weights, config: write_hugging_face(target, weights, dtype=_dtype(config)),
    "meta": lambda target, weights, config: write_meta(target, weights, shards=config.shards, dtype=_dtype(config)),
    "gguf": _write_gguf,
    "llama2c": _write_llama2c,
    "peft": _write_peft,
}


def _dtype(config: ConvertConfig) -> np.dtype | None:
    """The type to store, None for that of the source."""
    if config.dtype == "q8_0":
        raise UserError("--dtype q8_0: only --format gguf stores it; float32, float16 and bfloat16 fit every format")
    return None if config.dtype == "auto" else np.dtype(jax.numpy.dtype(config.dtype))


def _size(weights: Weights) -> int:
    return sum(math.prod(name.shape(weights.config)) for name, _ in tensors_of(weights.config))


def _facts(config: ConvertConfig, source: Weights, written: epath.Path, say: Callable[[str], None]) -> dict[str, Any]:
    """What is known of a conversion without computing logits."""
    rows = weight_names(source.config)
    before, after = sorted({str(source.dtype(name)) for name in rows}), ["float32"]
    parameters, changes = _size(source), {}
    if config.format != "peft":
        target = open_weights(str(written), step=None, say=say)
        after = sorted({str(target.dtype(name)) for name in rows})
        there = target.config.to_json()
        changes = {
            field: [value, there[field]] for field, value in source.config.to_json().items() if value != there[field]
        }
    elif isinstance(source, MergedWeights):
        parameters = tree.size([source.adapter.factors, source.adapter.saved_modules])
        before = after
    files = [written / name for name in files_below(written)] if written.is_dir() else [written]
    for field, (here, there) in changes.items():
        say(f"note: the format does not keep {field}: {here} in the source, {there} in the target")
    return {
        "source": config.source,
        "adapter": config.adapter,
        "unmerge": config.unmerge,
        "target": config.target,
        "format": config.format,
        "parameters": parameters,
        "source_dtypes": before,
        "target_dtypes": after,
        "bytes": sum(file.stat().length for file in files),
        "config_changes": changes,
        "check": None,
    }


def _check_conversion(
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
    difference, what = np.abs(before - after), "score" if source.config.scalar_head else "logit"
    check = {
        "tokens": tokens.size,
        "kind": kind,
        f"max_{what}_difference": float(difference.max()),
        f"mean_{what}_difference": float(difference.mean()),
        f"{what}_standard_deviation": float(before.std()),
    }
    said = f"largest difference of {what}s {difference.max():.2e}, mean {difference.mean():.2e}"
    if not source.config.scalar_head:
        check |= _losses(before, after, tokens)
        said += (
            f", same most likely token at {check['argmax_agreement']:.1%}; "
            f"loss {check['source_loss']:.3f} -> {check['target_loss']:.3f} nats per token"
        )
    say(f"checked on {tokens.size} tokens of {kind}: {said}")
    if not source.config.scalar_head:
        _refuse_nonsense(config, check, say)
    # (so that NaN is a difference)
    if not difference.mean() <= _allowed(config, source, target_dtypes) * before.std():
        raise CannotGoOnError(
            f"{config.target}: not written, the result differs from {config.source} by {difference.max():.2e} in a "
            f"{what}"
        )
    return check


def _losses(before: np.ndarray, after: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """How source and target predict the tokens, from their logits [T, V]."""
    return {
        "argmax_agreement": float((before.argmax(-1) == after.argmax(-1)).mean()),
        "source_loss": _loss(before, tokens),
        "target_loss": _loss(after, tokens),
        "uniform_loss": math.log(before.shape[-1]),
    }


def _refuse_nonsense(config: ConvertConfig, check: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Of a source that predicts far worse than chance: what two readings of it have in common proves nothing."""
    if not check["source_loss"] < _NONSENSE * check["uniform_loss"]:
        raise CannotGoOnError(
            f"{config.target}: not written, {config.source} predicts {check['kind']} at a loss of "
            f"{check['source_loss']:.3g} nats per token, where knowing nothing has {check['uniform_loss']:.3g}; its "
            "weights are damaged or not a LLaMA's; --no_check true converts it all the same"
        )
    if check["kind"] == "text" and check["source_loss"] > check["uniform_loss"]:
        say("note: the source predicts this text worse than chance; is it trained, and is this its tokenizer?")


def _check_tokenizer(
    config: ConvertConfig, source: Weights, written: epath.Path, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """How the tokenizer that was written compares with the source's; None where there is none.

    Raises:
        CannotGoOnError: it gives other ids.
    """
    is_adapter = config.format == "peft"
    files = read_bundle(Path(written)) if is_adapter else open_weights(str(written), step=None, say=say).files
    if not has_tokenizer(source.files):
        return None
    before, after = tokenizer_from_files(source.files, source.source), tokenizer_from_files(files, str(written))
    found = compared_tokenizers(before, after, _SAMPLE, source.config.vocab_size, config.target)
    for note in found["notes"]:
        say(f"note: {note}")
    return found


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
        ids = tokenizer.encode(_SAMPLE, bos=tokenizer.adds_bos)
        return np.array([[token for token in ids if token < weights.config.vocab_size][:length]], np.int32), "text"
    return np.random.default_rng(0).integers(0, weights.config.vocab_size, (1, length), np.int32), "random tokens"


def _compared(
    config: ConvertConfig, source: Weights, written: str, tokens: np.ndarray, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (of reward models, scores) of what there was and of what there is now, adapters beside their base and not
    merged where they are known."""
    before, after = ModelReference(str(config.source), config.step), ModelReference(written)
    if config.unmerge:
        return _outputs(before, None, tokens, say), _outputs(after, config.adapter, tokens, say)
    adapter = None
    if config.format == "peft" and isinstance(source, MergedWeights):
        after, adapter = ModelReference(str(source.adapter.base_name), source.adapter.base_step), written
    return _outputs(before, config.adapter, tokens, say), _outputs(after, adapter, tokens, say)


def _outputs(
    reference: ModelReference, adapter: str | None, tokens: np.ndarray, say: Callable[[str], None]
) -> np.ndarray:
    """Logits [T, V] of a model, or the scores [T, 1] of a reward model; with an adapter, over whatever base it is."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        opened = open_params(reference, ComputeConfig(), identify=False, say=say)
        if adapter is not None:
            read = open_adapter(adapter, step=None, say=say).read(opened.model.config)
            opened = with_adapters(opened, [read], any_base=True)
        rows = placing.placed(np.tile(tokens, (sharding.size_of("batch", mesh), 1)), sharding.row_sharding(mesh))
        model = opened.model

        def scores(params: PyTree, tokens: Int[Array, "B T"]) -> Float[Array, "B T 1"]:
            return model.scores(params, model.hidden(params, tokens))[..., None]

        return np.asarray(jax.jit(scores if model.config.scalar_head else model.logits)(opened.params, rows)[0])


def _loss(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Mean of -log p(next token), in nats."""
    return -float(logprobs_of(jax.numpy.asarray(logits[:-1]), jax.numpy.asarray(tokens[0, 1:]))[0].mean())
