"""What a path holds, told from what is there, and its model read tensor by tensor, whatever the format; an adapter and
its base as one, merged.

Nothing is put on devices here: see `opening` for a model to be used."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from etils import epath

from llama_jax.checkpoints.adapters.base_identity import check_base, identity_of
from llama_jax.checkpoints.adapters.merged_weights import merged, unmerged
from llama_jax.checkpoints.adapters.peft_config import PEFT_CONFIG
from llama_jax.checkpoints.adapters.sources import AdapterSource, holds_adapter, open_adapter_run, open_peft_directory
from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.formats.gguf import open_gguf
from llama_jax.checkpoints.formats.hugging_face import has_weights, hub_directory, open_hugging_face
from llama_jax.checkpoints.formats.llama2c import open_llama2c
from llama_jax.checkpoints.formats.meta import open_meta
from llama_jax.checkpoints.formats.orbax import open_orbax
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote

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
_READERS: Mapping[Kind, Callable[[str], Weights]] = {
    "hf": open_hugging_face,
    "meta": open_meta,
    "gguf": open_gguf,
    "llama2c": open_llama2c,
}
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
            is_peft = kind == "hf" and (directory / PEFT_CONFIG).exists() and not has_weights(directory)
            return "peft" if is_peft else kind
    raise UserError(
        f"--model {directory}: holds no model; a run has checkpoints/, a Hugging Face model config.json, "
        f"Meta's format params.json, an adapter of PEFT {PEFT_CONFIG}"
    )


def open_adapter(path: str, *, step: StepChoice | None, say: Callable[[str], None]) -> AdapterSource:
    """The adapter of a path: a run that trained one, or a directory of PEFT.

    Args:
        step: checkpoint of a run; None: the newest that verifies.
        say: told of checkpoints that do not verify.

    Raises:
        UserError: there is none, or it is broken.
    """
    place, kind = find_format(path)
    if kind == "lora":
        return open_adapter_run(epath.Path(place), step, say)
    if kind != "peft":
        raise UserError(f"--adapters {path}: is a model, not an adapter (a run of lora, or a directory of PEFT)")
    if step is not None:
        raise UserError(f"--step {step}: {path} is a single adapter, not a run with checkpoints")
    return open_peft_directory(place)


def base_of(adapter: AdapterSource) -> tuple[str, Kind]:
    """Where the base of an adapter is, as it says itself, and in which format.

    Raises:
        UserError: it does not say, or nothing is there anymore.
    """
    advice = f"give its base as --model and {adapter.source} as --adapters"
    if adapter.base_name is None:
        raise UserError(f"--model {adapter.source}: is an adapter that does not name its base; {advice}")
    try:
        place, kind = find_format(adapter.base_name)
    except UserError as error:
        reason = str(error).removeprefix("--model ")
        raise UserError(f"--model {adapter.source}: is an adapter over {reason}; {advice}") from None
    if kind in ("lora", "peft"):
        raise UserError(f"--model {adapter.source}: is an adapter over another, {adapter.base_name}; merge that first")
    return place, kind


def open_weights(
    path: str, *, step: StepChoice | None, say: Callable[[str], None], adapter: str | None = None
) -> Weights:
    """The model of a path, tensor by tensor; an adapter and its base as one, merged.

    Args:
        step: checkpoint of a run; None: the newest that verifies.
        say: told of checkpoints that do not verify.
        adapter: run of lora, or directory of PEFT, to merge into the model.

    Raises:
        UserError: nothing is there that can be read, it is broken, or the adapter belongs to another base.
    """
    place, kind = find_format(path)
    if kind in ("lora", "peft"):
        if adapter is not None:
            raise UserError(f"{path}: is an adapter itself; name the base of both, and one adapter")
        own = open_adapter(path, step=step, say=say)
        (place, kind), path, step = base_of(own), str(own.base_name), own.base_step
    else:
        own = None if adapter is None else open_adapter(adapter, step=None, say=say)
    if kind == "orbax":
        weights = open_orbax(epath.Path(place), step=step, say=say)
    elif step is not None:
        raise UserError(f"--step {step}: {place} is a single model, not a run with checkpoints")
    else:
        weights = _READERS[kind](place)
    if own is None:
        return weights
    read, number = own.read(weights.config), step if isinstance(step, int) else None
    if read.base is not None:
        check_base(read.base, identity_of(weights, path, number), read.source)
    return merged(weights, dataclasses.replace(read, base_name=lasting_name(path), base_step=number))


def open_unmerged(path: str, adapter: str, *, step: StepChoice | None, say: Callable[[str], None]) -> Weights:
    """The base of an adapter, taken from the model that it was merged into; see `open_weights` and `unmerged`."""
    weights = open_weights(path, step=step, say=say)
    return unmerged(weights, open_adapter(adapter, step=None, say=say).read(weights.config))


def lasting_name(name: str) -> str:
    """What `--model` was given, as it still holds in another working directory."""
    return str(Path(name).resolve()) if not is_remote(name) and Path(name).exists() else name
