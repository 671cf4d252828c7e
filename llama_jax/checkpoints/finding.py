"""What a path holds, told from what is there. Opens no model, and imports nothing that is slow to import: a wrong path
is refused at once."""

import re
from collections.abc import Collection, Mapping
from typing import Literal

from etils import epath

from llama_jax.checkpoints.adapters.peft_config import PEFT_CONFIG
from llama_jax.checkpoints.formats.hugging_face import hub_directory
from llama_jax.checkpoints.formats.stored_tensors import has_weights
from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, read_manifest
from llama_jax.core.errors import UserError
from llama_jax.model.paths import SCORE

ModelFormat = Literal["orbax", "hf", "meta", "gguf", "llama2c", "peft"]
"""What can be written."""
Kind = Literal[ModelFormat, "lora"]
"""What can be read: also a run that trained an adapter."""

RunKind = Literal["model", "adapter", "reward"]
"""What a run has made: a language model, an adapter for one, or a reward model, whole or as an adapter."""

_DIRECTORIES: Mapping[str, Kind] = {
    "checkpoints": "orbax",
    "config.json": "hf",
    "params.json": "meta",
    PEFT_CONFIG: "peft",
}
"""What a directory of each format has, looked for in this order: some of Hugging Face's also have a params.json."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_model(path: str, setting: str) -> None:
    """Refuse a path at which no model is. A name that may be one of the Hugging Face hub is let pass.

    Args:
        setting: that named it, for the message, such as `--adapters`.

    Raises:
        UserError: nothing is there that can be read.
    """
    if not _is_hub_id(path):
        find_format(path, setting)


def find_format(path: str, setting: str = "--model") -> tuple[str, Kind]:
    """Where the model is and in which format. A name of the Hugging Face hub, `owner/model`, is downloaded if there is
    no such path.

    Raises:
        UserError: nothing is there that can be read.
    """
    found = epath.Path(path)
    if _is_hub_id(path):
        found = epath.Path(hub_directory(path))
    elif not found.exists():
        raise UserError(f"{setting} {path}: no such file or directory")
    if found.is_dir():
        return str(found), _directory_format(found, setting)
    with found.open("rb") as file:
        if file.read(4) == b"GGUF":
            return path, "gguf"
    if path.endswith(".bin"):
        return path, "llama2c"
    raise UserError(
        f"{setting} {path}: neither a GGUF nor a llama2c model (.bin); of a model in several files name the directory"
    )


def _is_hub_id(path: str) -> bool:
    found = epath.Path(path)
    return not found.exists() and _HUB_ID.fullmatch(path) is not None and not found.parent.exists()


def _directory_format(directory: epath.Path, setting: str) -> Kind:
    for name, kind in _DIRECTORIES.items():
        if (directory / name).exists():
            if kind == "orbax" and _holds_adapter(directory):
                return "lora"
            # Trainers also put the configuration of the base beside an adapter.
            is_peft = kind == "hf" and (directory / PEFT_CONFIG).exists() and not has_weights(directory)
            return "peft" if is_peft else kind
    raise UserError(
        f"{setting} {directory}: holds no model; a run has checkpoints/, a Hugging Face model config.json, "
        f"Meta's format params.json, an adapter of PEFT {PEFT_CONFIG}"
    )


def run_kind(run: epath.PathLike) -> RunKind:
    """What a run has made, by its newest checkpoint whose manifest is whole."""
    from llama_jax.checkpoints.adapters.adapter import ADAPTER_ITEM  # imports JAX, which a right path is worth

    leaves = _newest_leaves(epath.Path(run))
    if SCORE in leaves.get(ADAPTER_ITEM, leaves.get("params", ())):
        return "reward"
    return "adapter" if ADAPTER_ITEM in leaves else "model"


def _holds_adapter(run: epath.Path) -> bool:
    from llama_jax.checkpoints.adapters.adapter import ADAPTER_ITEM  # as above

    return ADAPTER_ITEM in _newest_leaves(run)


def _newest_leaves(run: epath.Path) -> Mapping[str, Collection[str]]:
    """Paths of the arrays of each item, of the newest checkpoint of a run whose manifest is whole."""
    directory = run / "checkpoints"
    for step in reversed(finished_steps(directory)):
        try:
            return read_manifest(directory / str(step)).leaves
        except CheckpointDamagedError:
            continue
    return {}
