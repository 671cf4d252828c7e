"""The weights of a directory of Hugging Face, in one file or in several with an index; safetensors files are preferred
to PyTorch's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from etils import epath

from llama_jax.checkpoints.formats.directories import has_member, member
from llama_jax.checkpoints.formats.safetensors_files import SafetensorsFile, open_safetensors, same_bits
from llama_jax.checkpoints.formats.torch_files import TorchFile
from llama_jax.core.errors import UserError
from llama_jax.core.json_files import read_json, shown

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
EMBEDDING = "model.embed_tokens.weight"

_HEAD, _OF_MODEL = "lm_head.weight", "model."
_LONGEST_INDEX = 2**24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, whatever it is called there."""

    file: SafetensorsFile | TorchFile
    name: str

    @property
    def described(self) -> tuple[tuple[int, ...], np.dtype]:
        return self.file.tensors[self.name]

    def read(self) -> np.ndarray:
        return self.file.read(self.name)


def is_table_of_angles(name: str) -> bool:
    """Whether older versions of transformers stored it, and newer ones do without."""
    return name.endswith("rotary_emb.inv_freq")


def has_weights(directory: epath.Path) -> bool:
    """Whether a directory holds weights, and not a configuration alone."""
    names = (whole + ending for whole in (SAFETENSORS, PYTORCH) for ending in ("", ".index.json"))
    return any((directory / name).exists() for name in names)


def stored_tensors(directory: Path, *, tied: bool) -> dict[str, StoredTensor]:
    """The stored tensors, by the names that they have in a LLaMA with its head: those of one without (`LlamaModel`) are
    shorter, and of a tied matrix one name is enough.

    Args:
        tied: whether the head is the embedding.

    Raises:
        UserError: a file is missing, broken, or may not be opened; files and index contradict each other, or head and
            embedding.
    """
    files = _open_files(directory, tied=tied)
    stored = {name: StoredTensor(file, name) for file in files for name in file.tensors}
    bare = EMBEDDING.removeprefix(_OF_MODEL)
    if bare in stored and not any(name.startswith(_OF_MODEL) for name in stored):
        stored = {name if name == _HEAD else _OF_MODEL + name: tensor for name, tensor in stored.items()}
    if tied and (head := stored.pop(_HEAD, None)) is not None:
        table = stored.setdefault(EMBEDDING, head)
        if table is not head and not same_bits(table.read(), head.read()):
            raise UserError(f"{directory}: {_HEAD} differs from {EMBEDDING}, but tie_word_embeddings is true")
    return stored


def _open_files(directory: Path, *, tied: bool) -> list[SafetensorsFile | TorchFile]:
    """The files of the weights, which hold what their index says. What is not read, or of which one copy is enough, may
    be in either alone."""

    def may_differ(name: str) -> bool:
        return is_table_of_angles(name) or (tied and name in (EMBEDDING, _HEAD))

    for whole, opener in ((SAFETENSORS, open_safetensors), (PYTORCH, TorchFile)):
        if has_member(directory, whole):
            return [opener(member(directory, whole))]
        if has_member(directory, f"{whole}.index.json"):
            index = member(directory, f"{whole}.index.json")
            placed = _weight_map(index)
            files = {name: opener(member(directory, name)) for name in sorted(set(placed.values()))}
            for name, file in files.items():
                announced = {tensor for tensor, home in placed.items() if home == name}
                wrong = min(
                    (tensor for tensor in announced ^ file.tensors.keys() if not may_differ(tensor)), default=None
                )
                if wrong is not None:
                    which = "lacks" if wrong in announced else "has"
                    raise UserError(f"{file.path}: {which} tensor {shown(wrong)}, against what {index.name} says")
            return list(files.values())
    raise UserError(f"{directory}: has neither {SAFETENSORS} nor {PYTORCH}, nor an index of either")


def _weight_map(index: Path) -> Mapping[str, str]:
    """Name of the file that each tensor is in, without a `./` before it."""
    placed = read_json(index, max_bytes=_LONGEST_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(home, str) for home in placed.values()):
        raise UserError(f"{index}: weight_map is {shown(placed)}; an object of tensor and file names is expected")
    return {tensor: home.removeprefix("./") for tensor, home in placed.items()}
