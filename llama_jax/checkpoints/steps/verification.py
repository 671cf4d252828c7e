"""Which step to restore: the newest that verifies, decided alike on all processes.

Works on manifests and files; how arrays are read is the caller's affair."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.steps.folders import best_step, finished_steps
from llama_jax.checkpoints.steps.manifest import (
    CheckpointDamagedError,
    FileRecord,
    Manifest,
    describe,
    first_damage,
    read_manifest,
    record_of,
)
from llama_jax.core.errors import UserError

_T = TypeVar("_T")


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process; all call it together."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.int32(flag)).any())


def from_first(values: Sequence[int]) -> list[int]:
    """The values that process 0 gives; all processes call it together."""
    if jax.process_count() == 1:
        return list(values)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    padded = np.zeros(length, np.int32)
    padded[: len(values)] = values[:length]
    return multihost_utils.broadcast_one_to_all(padded).tolist() if length else []


def first_line(error: Exception) -> str:
    """Why something failed, in one line."""
    text = str(error)
    if "No space left on device" in text:
        return "no space left on device"
    return (text.splitlines() or [type(error).__name__])[0][:300]


def newest(
    directory: epath.Path, step: StepChoice | None, say: Callable[[str], None], read: Callable[[int], _T]
) -> _T | None:
    """What `read` gives for the newest step for which it does not raise `CheckpointDamagedError`, or for `step` alone
    if that is given; None if there is no checkpoint.

    Raises:
        CheckpointDamagedError: if there are steps but none verifies.
        UserError: if there is no such step.
    """
    steps = from_first(finished_steps(directory)[::-1])
    if step == "best":
        found = from_first([best_step(directory) or -1])[0]
        if found < 0:
            raise UserError(f"step best: no checkpoint in {directory} has a validation loss; name a step")
        step = found
    if step is not None:
        if step not in steps:
            known = ", ".join(map(str, reversed(steps))) or "none"
            raise UserError(f"no checkpoint step {step} in {directory}; there are: {known}")
        steps = [step]
    reasons = []
    for number, older in zip_longest(steps, steps[1:]):
        try:
            return read(number)
        except CheckpointDamagedError as error:
            reasons.append(f"step {number}: {error}")
            if step is None:
                rest = "there is no older one" if older is None else f"falling back to step {older}"
                say(f"checkpoint step {number} does not verify: {error}; {rest}")
    if reasons:
        raise CheckpointDamagedError(f"no checkpoint in {directory} verifies ({'; '.join(reasons)})")
    return None


def verify(
    directory: epath.Path, step: int, items: Sequence[str], wanted: Mapping[str, Mapping[str, str]]
) -> tuple[Manifest, dict[str, bytes]]:
    """Compare the files of some items with the manifest. The files of arrays are shared out among the processes.

    Args:
        directory: folder of the steps.
        step: number of the step.
        items: array items and folders of plain files; files of other items are not opened.
        wanted: by array item and path, what `describe` says of the leaf; compared first, as that is quick.

    Returns:
        The manifest, and the contents of the plain files by path within the step folder.

    Raises:
        CheckpointDamagedError: on all processes, if any of them finds damage.
        UserError: if the step lacks an item, or its leaves are not those wanted.
    """
    folder = directory / str(step)
    try:
        manifest, reason = read_manifest(folder), None
    except (CheckpointDamagedError, OSError) as error:
        manifest, reason = None, first_line(error)
    _agree(reason)
    assert manifest is not None
    for item in items:
        if item not in manifest.items():
            known = ", ".join(manifest.items())
            raise UserError(f"checkpoint step {step} in {directory} has no {item}; it has {known}")
    check_fit(manifest, wanted)
    files, reason = _plain_files(folder, manifest, [item for item in items if item not in manifest.leaves])
    arrays = sorted({name for item in items if item in manifest.leaves for name in manifest.files_of(item)})
    share = arrays[jax.process_index() :: jax.process_count()]
    _agree(reason or first_damage(manifest, share, lambda name: record_of(folder / name)))
    return manifest, files


def check_fit(manifest: Manifest, wanted: Mapping[str, Mapping[str, str]]) -> None:
    """Raise `UserError` with the first few leaves in which a step differs from what is wanted."""
    differences = []
    for item, leaves in wanted.items():
        saved = {path: describe(leaf.shape, leaf.dtype) for path, leaf in manifest.leaves.get(item, {}).items()}
        for path in sorted({*saved, *leaves}):
            if path not in saved:
                differences.append(f"lacks {item}/{path}, the model expects {leaves[path]}")
            elif path not in leaves:
                differences.append(f"has {item}/{path} {saved[path]}, which the model does not have")
            elif saved[path] != leaves[path]:
                differences.append(f"has {item}/{path} {saved[path]}, the model expects {leaves[path]}")
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(f"checkpoint step {manifest.step} {'; '.join(differences[:3])}{more}")


def _plain_files(folder: epath.Path, manifest: Manifest, items: Sequence[str]) -> tuple[dict[str, bytes], str | None]:
    """Contents by name, and what is wrong with the first that is not what was written."""
    names = [name for item in items for name in manifest.files_of(item)]
    files: dict[str, bytes] = {}

    def record(name: str) -> FileRecord:
        content = files[name] = (folder / name).read_bytes()
        return FileRecord(len(content), hashlib.sha256(content).hexdigest())

    problem = first_damage(manifest, names, record)
    return {name: files[name] for name in names if name in files}, problem


def _agree(reason: str | None) -> None:
    if anywhere(reason is not None):
        raise CheckpointDamagedError(reason or "another process finds it damaged")
