"""What a path holds, told from what is there: a run, a model, or an adapter, in one of the formats that can be read."""

import re
from collections.abc import Mapping
from typing import Literal

from etils import epath

from llama_jax.checkpoints.adapters.peft_config import PEFT_CONFIG
from llama_jax.checkpoints.adapters.sources import holds_adapter
from llama_jax.checkpoints.formats.hugging_face import has_weights, hub_directory
from llama_jax.core.errors import UserError

ModelFormat = Literal["orbax", "hf", "meta", "gguf", "llama2c", "peft"]
"""What can be written."""
Kind = Literal[ModelFormat, "lora"]
"""What can be read: also a run that trained an adapter."""

_DIRECTORIES: Mapping[str, Kind] = {
    "checkpoints": "orbax",
    "config.json": "hf",
    "params.json": "meta",
    PEFT_CONFIG: "peft",
}
"""What a directory of each format has, looked for in this order: some of Hugging Face's also have a params.json."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_format(path: str) -> tuple[str, Kind]:
    """Where the model is and in which format. A name of the Hugging Face hub, `owner/model`, is downloaded if there is
    no such path.

    Raises:
        UserError: nothing is there that can be read.
    """
    found = epath.Path(path)
    if not found.exists():
        if not _HUB_ID.fullmatch(path) or found.parent.exists():
            raise UserError(f"--model {path}: no such file or directory")
        found = epath.Path(hub_directory(path))
    if found.is_dir():
        return str(found), _directory_format(found)
    with found.open("rb") as file:
        if file.read(4) == b"GGUF":
            return path, "gguf"
    if path.endswith(".bin"):
        return path, "llama2c"
    raise UserError(
        f"--model {path}: neither a GGUF nor a llama2c model (.bin); of a model in several files name the directory"
    )


def _directory_format(directory: epath.Path) -> Kind:
    for name, kind in _DIRECTORIES.items():
        if (directory / name).exists():
            if kind == "orbax" and holds_adapter(directory):
                return "lora"
            # Trainers also put the configuration of the base beside an adapter.
            return "peft" if kind == "hf" and _is_peft(directory) else kind
    raise UserError(
        f"--model {directory}: holds no model; a run has checkpoints/, a Hugging Face model config.json, "
        f"Meta's format params.json, an adapter of PEFT {PEFT_CONFIG}"
    )


def _is_peft(directory: epath.Path) -> bool:
    return (directory / PEFT_CONFIG).exists() and not has_weights(directory)
