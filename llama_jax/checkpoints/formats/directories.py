"""Directories of models that someone else made: which of their files may be opened, and what travels with weights."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from llama_jax.checkpoints.reward_normalization import NORMALIZATION_FILE
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote, write_whole
from llama_jax.core.json_files import read_bounded, shown
from llama_jax.data.tokenizers import with_named_templates

_MIB = 2**20
_MOST_TEMPLATES = 64

BUNDLE = {
    "tokenizer.model": 64 * _MIB,
    "tokenizer.json": 128 * _MIB,
    "tokenizer.bin": 64 * _MIB,
    "llama2c_rotary.bin": 64 * _MIB,
    "tokenizer_config.json": 4 * _MIB,
    "special_tokens_map.json": _MIB,
    "added_tokens.json": 4 * _MIB,
    "chat_template.jinja": _MIB,
    "generation_config.json": _MIB,
    NORMALIZATION_FILE: _MIB,
}
"""Files that travel with the weights, and the most bytes each may have."""


def local_directory(path: epath.PathLike) -> Path:
    """A directory of the local file system, symbolic links resolved.

    Raises:
        UserError: it is in object storage, does not exist, or is not a directory.
    """
    if is_remote(path):
        raise UserError(f"{path}: is in object storage; copy it to a local directory first")
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such directory")
    return Path(path).resolve()


def member(directory: Path, name: str) -> Path:
    """The path of a file in a directory (already resolved), when opening it is safe.

    Links may point within the directory, or, in the cache of the Hugging Face hub
    (`models--NAME/snapshots/REVISION/`), into the `models--NAME/blobs/` that belongs to it.

    Raises:
        UserError: the name is a path, or what it names is missing, not a regular file, or elsewhere.
    """
    if not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise UserError(f"{directory}: {shown(name)} is not the name of a file in this directory")
    path = directory / name
    target = Path(os.path.realpath(path))  # unlike resolve(), takes links in circles
    homes = [directory]
    for snapshot in (directory, directory.parent):
        if snapshot.parent.name == "snapshots" and snapshot.parents[1].name.startswith("models--"):
            homes.append(snapshot.parents[1] / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        raise UserError(f"{path}: is a link out of its directory, to {target}; copy the file here if it belongs here")
    if not target.is_file():
        raise UserError(f"{path}: is not a regular file" if target.exists() else f"{path}: no such file")
    return path


def has_member(directory: Path, name: str) -> bool:
    """Whether the directory has an entry of this name, even one that `member` refuses."""
    path = directory / name
    return path.exists() or path.is_symlink()


def read_bundle(directory: Path) -> dict[str, bytes]:
    """The files of a directory that travel with the weights, by name.

    Raises:
        UserError: one of them may not be opened, or is too long.
    """
    files = {
        name: read_bounded(member(directory, name), most)
        for name, most in BUNDLE.items()
        if has_member(directory, name)
    }
    folder = directory / "additional_chat_templates"
    names = sorted(path.name for path in folder.glob("*.jinja"))[:_MOST_TEMPLATES]
    named = {name.removesuffix(".jinja"): read_bounded(member(folder, name), _MIB) for name in names}
    return with_named_templates(files, named)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a configuration as people read it."""
    write_whole(epath.Path(path), json.dumps(values, indent=2) + "\n")


def write_bundle(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files that travel with the weights; `read_bundle` gives them back."""
    for name in BUNDLE.keys() & files.keys():
        write_whole(epath.Path(directory / name), files[name])
