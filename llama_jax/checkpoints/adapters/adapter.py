"""An adapter in memory, whatever it was read from, and what it knows of its base: fingerprints, not its name.

Two are kept of each weight: as it was read, and as it was kept in memory. So an adapter that was trained over a base in
bfloat16 or in 4 bits still knows the base in float32 that those were made from, and one that was stored in bfloat16."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from llama_jax.checkpoints.formats.weights import (
    WEIGHTS,
    WeightName,
    Weights,
    is_padded,
    padded,
    stored_shape,
    tensors_of,
    weight_names,
)
from llama_jax.checkpoints.steps.manifest import LeafRecord
from llama_jax.core.arrays import Array, PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_object, shown
from llama_jax.core.tree import part_fingerprint
from llama_jax.model import paths
from llama_jax.model.config import AdapterConfig, LlamaConfig

ADAPTER_ITEM = "adapter"
"""Array item of a checkpoint that holds an adapter: the leaves that differ from the base, by their paths in the tree of
parameters (`lora/layers/…`, and the modules that were trained whole)."""
ADAPTER_FILE = "model/adapter.json"
"""Plain file of such a checkpoint that holds the `AdapterConfig`."""
BASE_FILE = "model/base.json"
"""Plain file of a checkpoint of an adapter that holds the identity of its base."""
PEFT_BASE_FILE = "llama_jax_base.json"
"""The same beside an adapter that was written for PEFT, which passes over it."""
LARGEST_BASE_FILE = 2**20
"""Bytes; that of a model in 4 bits has some 10,000."""

Fingerprints = Mapping[str, LeafRecord]
"""Shape, type and fingerprint by path in our tree, layers stacked and vocabulary padded."""


@dataclass(frozen=True)
class BaseIdentity:
    """A base, known again wherever it is."""

    name: str
    """Where it was, as `--model` takes it."""
    step: int | None
    """Checkpoint, of a base that is a run."""
    config: LlamaConfig
    """Its architecture."""
    source: Fingerprints
    """Of the weights in the type they were read in (float32 where that is a quantised file)."""
    stored: Fingerprints
    """Of the weights in the type they were kept in; below the path of a quantised kernel there are several arrays."""
    with_padding: Fingerprints = field(default_factory=dict, compare=False)
    """Of matrices of a run as they are stored, where rows that no token reaches are not zero: as adapters of earlier
    versions remember them. Not remembered any more, for an export does not have those rows."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is known of the weights: the same wherever the base is."""
        facts = {name: known for name, known in json.loads(self.to_json()).items() if name not in ("name", "step")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        """The content of `BASE_FILE`."""
        values = {"name": self.name, "step": self.step, "config": self.config.to_json()}
        fingerprints = {kind: {path: asdict(leaf) for path, leaf in getattr(self, kind).items()} for kind in _KINDS}
        return json.dumps(values | fingerprints, indent=1).encode()

    @staticmethod
    def from_json(content: bytes, where: str) -> "BaseIdentity":
        """The inverse of `to_json`.

        Args:
            where: file, for messages.

        Raises:
            UserError: it is not what `to_json` writes.
        """
        values = json_object(content, where)
        try:
            source, stored = ({path: _record(leaf) for path, leaf in values[kind].items()} for kind in _KINDS)
            name, step = values["name"], values["step"]
            if not isinstance(name, str) or not (step is None or type(step) is int):
                raise TypeError
            return BaseIdentity(name, step, LlamaConfig.from_json(values["config"]), source, stored)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{where}: does not describe the base of an adapter: {shown(values)}") from None


_KINDS = ("source", "stored")


def _record(leaf: Any) -> LeafRecord:
    return LeafRecord(tuple(map(int, leaf["shape"])), str(leaf["dtype"]), tuple(map(int, leaf["fingerprint"])))


@dataclass(frozen=True)
class Adapter:
    """What was learned beside a frozen base, and what is known of that base."""

    factors: PyTree
    """Float32 tree as `params["lora"]` holds it: `a`, `b`, `scale`, and `magnitude` of DoRA, layers stacked."""
    config: AdapterConfig
    """How it was made. What holds is the tree: layers may differ in `scale`, and in their rank, which is padded."""
    saved_modules: Mapping[str, Any]
    """Matrices that were trained whole, by path, the vocabulary padded: in place of those of the base, or as the
    scalar head of a reward model."""
    source: str
    """Where it came from, for people."""
    base: BaseIdentity | None = None
    """The base it was trained on; None where the file does not tell."""
    base_name: str | None = None
    """Where the base is, as `--model` takes it, if known."""
    base_step: int | None = None
    """The checkpoint of a base that is a run; None: the newest."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """The tokenizer that travels with it, and what belongs to that; see `Weights.files`."""

    def architecture(self, base: LlamaConfig) -> LlamaConfig:
        """What base and adapter are together: a reward model, where a scalar head was trained beside the factors."""
        return replace(base, scalar_head=base.scalar_head or paths.SCORE in self.saved_modules)


def linears(config: LlamaConfig) -> Iterator[tuple[str, WeightName, tuple[int, int]]]:
    """The Linears in the blocks: path within the layers (`attention/q_proj`), row of the table of weights, and sizes of
    input and output."""
    for name in WEIGHTS:
        if name.per_layer and name.transposed:
            inputs, outputs = name.shape(config)
            yield paths.within_layer(paths.module_of(name.ours)), name, (inputs, outputs)


def adapter_config_json(config: AdapterConfig) -> bytes:
    """The content of `ADAPTER_FILE`."""
    return json.dumps(asdict(config), indent=1).encode()


def adapter_config_from_json(content: bytes, where: str) -> AdapterConfig:
    """The inverse of `adapter_config_json`.

    Raises:
        UserError: it is not what that writes.
    """
    values = json_object(content, where)
    known = {field.name for field in fields(AdapterConfig)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in known
    }
    try:
        return AdapterConfig(**given)
    except TypeError:
        raise UserError(f"{where}: does not describe an adapter: {shown(values)}") from None


def check_base(wanted: BaseIdentity, opened: BaseIdentity, adapter: str) -> None:
    """Make sure that a base is the one an adapter belongs to: each weight must be, as it was read or as it was kept,
    the same bits as at the training.

    Args:
        wanted: the base of the training.
        opened: the base there is.
        adapter: where the adapter came from, for the message.

    Raises:
        UserError: it is another base; names the first weight that differs, or the setting.
    """
    here = _complaint(wanted, opened, adapter)
    before, now = wanted.config.to_json(), opened.config.to_json()
    for name, value in before.items():
        if now[name] != value and name != "context_length":  # which some formats do not keep
            raise UserError(f"{here}: {name} is {shown(now[name])} there, {shown(value)} in the base it was trained on")
    for path in wanted.source:
        known = (_of_weight(wanted.source, path), _of_weight(wanted.stored, path))
        kinds = (opened.source, opened.stored, opened.with_padding)
        found = [_of_weight(fingerprints, path) for fingerprints in kinds]
        if not any(one and one == other for one in known for other in found):
            raise UserError(f"{here}: {path} has other values than in {wanted.name}, the base it was trained on")


def _complaint(wanted: BaseIdentity, opened: BaseIdentity, adapter: str) -> str:
    """What is wrong when one base was given and another is wanted."""
    if wanted.name != opened.name:
        return f"{adapter}: belongs to a base other than {opened.name}"
    if wanted.step != opened.step:
        return f"{adapter}: belongs to step {wanted.step} of {opened.name}, and this is step {opened.step}"
    place = Path(opened.name)
    if opened.step is not None:
        place = place / "checkpoints" / str(opened.step)
    written = [path.stat().st_mtime for path in (place, *place.rglob("*")) if path.is_file()]
    when = f", last on {datetime.fromtimestamp(max(written)):%Y-%m-%d at %H:%M}" if written else ""
    return f"{adapter}: its base, {opened.name}, has changed since it was trained on{when}"


def _of_weight(fingerprints: Fingerprints, path: str) -> Fingerprints:
    """The arrays of one weight."""
    return {name: leaf for name, leaf in fingerprints.items() if name == path or name.startswith(f"{path}/")}


class SourceFingerprints:
    """Takes the fingerprints of weights as they are read, tensor by tensor."""

    def __init__(self, config: LlamaConfig) -> None:
        self._config = config
        self._sums: dict[str, np.ndarray] = {}
        self._types: dict[str, str] = {}

    def add(self, name: WeightName, layer: int | None, tensor: np.ndarray | Array) -> None:
        """One tensor as `Weights.read` gave it, the vocabulary padded; it may be on a mesh already."""
        words = part_fingerprint(tensor, (layer or 0) * tensor.size)
        self._sums[name.ours] = self._sums.get(name.ours, np.uint32(0)) + words
        self._types[name.ours] = str(tensor.dtype)

    def records(self) -> dict[str, LeafRecord]:
        """What was added; every tensor must have been, once."""
        shapes = {name.ours: stored_shape(self._config, name) for name in weight_names(self._config)}
        return {
            path: LeafRecord(shapes[path], self._types[path], tuple(map(int, words)))
            for path, words in self._sums.items()
        }


def as_stored(tensor: np.ndarray, name: WeightName, config: LlamaConfig) -> np.ndarray:
    """A tensor as our tree has it: the vocabulary padded, float64 as float32, which is the most that JAX has."""
    tensor = padded(tensor, name, config)
    return tensor.astype(np.float32) if tensor.dtype == np.float64 else tensor


def identity_of(weights: Weights, name: str, step: int | None) -> BaseIdentity:
    """The identity of weights that are read and not kept; reads each tensor once, of a checkpoint, whose manifest has
    the fingerprints, only those with rows of padding."""
    saved: Fingerprints = getattr(weights, "leaves", {})
    fingerprints = SourceFingerprints(weights.config)
    for row, layer in tensors_of(weights.config):
        if row.ours not in saved or is_padded(row.ours, weights.config):
            fingerprints.add(row, layer, as_stored(weights.read(row, layer), row, weights.config))
    records = {**saved, **fingerprints.records()}
    return BaseIdentity(name, step, weights.config, records, records, with_padding=saved)
