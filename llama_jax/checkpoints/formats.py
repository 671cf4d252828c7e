"""What a path holds, told from what is there: a run, or a model in one of the formats that can be read."""

import re
from collections.abc import Callable, Mapping
from typing import Literal

from etils import epath

from llama_jax.checkpoints.gguf import open_gguf
from llama_jax.checkpoints.hugging_face import hub_directory, open_hugging_face
from llama_jax.checkpoints.llama2c import open_llama2c
from llama_jax.checkpoints.meta import open_meta
from llama_jax.checkpoints.orbax_weights import open_orbax
from llama_jax.checkpoints.weights import Weights
from llama_jax.core.errors import UserError

Format = Literal["orbax", "hf", "meta", "gguf", "llama2c"]

_DIRECTORIES: Mapping[str, Format] = {"checkpoints": "orbax", "config.json": "hf", "params.json": "meta"}
"""What a directory of each format has, looked for in this order: some of Hugging Face's also have a params.json."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_format(path: str) -> tuple[str, Format]:
    """Where the model is and in which format. A name of the Hugging Face hub, `owner/model`, is downloaded if there is
    no such path.

    Raises:
        UserError: nothing is there that can be read.
    """
    found = epath.Path(path)
    if not found.exists():
        if _HUB_ID.fullmatch(path) and not found.parent.exists():
            return str(hub_directory(path)), "hf"
        raise UserError(f"--model {path}: no such file or directory")
    if found.is_dir():
        for name, kind in _DIRECTORIES.items():
            if (found / name).exists():
                return path, kind
        raise UserError(
            f"--model {path}: holds no model; a run has checkpoints/, a Hugging Face model config.json, "
            "Meta's format params.json"
        )
    with found.open("rb") as file:
        if file.read(4) == b"GGUF":
            return path, "gguf"
    if path.endswith(".bin"):
        return path, "llama2c"
    raise UserError(
        f"--model {path}: neither a GGUF nor a llama2c model (.bin); of a model in several files name the directory"
    )


def open_weights(path: str, *, step: int | None, say: Callable[[str], None]) -> Weights:
    """The model of a path, tensor by tensor.

    Args:
        step: checkpoint of a run; None: the newest that verifies.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: nothing is there that can be read, or it is broken.
    """
    path, kind = find_format(path)
    if kind == "orbax":
        return open_orbax(epath.Path(path), step=step, say=say)
    if step is not None:
        raise UserError(f"--step {step}: {path} is a single model, not a run with checkpoints")
    readers = {"hf": open_hugging_face, "meta": open_meta, "gguf": open_gguf, "llama2c": open_llama2c}
    return readers[kind](path)
