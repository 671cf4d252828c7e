"""An adapter in memory, whatever it was read from, and the table of the modules that it may adapt."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from llama_jax.checkpoints.adapters.base_identity import BaseIdentity
from llama_jax.checkpoints.formats.weights import WEIGHTS, WeightName
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.json_files import json_object, shown
from llama_jax.model import paths
from llama_jax.model.config import AdapterConfig, LlamaConfig

ADAPTER_ITEM = "adapter"
"""Array item of a checkpoint that holds an adapter: the leaves that differ from the base, by their paths in the tree of
parameters (`lora/layers/…`, and the modules that were trained whole)."""
ADAPTER_FILE = "model/adapter.json"
"""Plain file of such a checkpoint that holds the `AdapterConfig`."""


@dataclass(frozen=True)
class Adapter:
    """What was learned beside a frozen base, and what is known of that base."""

    factors: PyTree
    """Float32 tree as `params["lora"]` holds it: `a`, `b`, `scale`, and `magnitude` of DoRA, layers stacked."""
    config: AdapterConfig
    """How it was made. What holds is the tree: layers may differ in `scale`, and in their rank, which is padded."""
    saved_modules: Mapping[str, Any]
    """Matrices of the base that were trained whole, by path, the vocabulary padded."""
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
