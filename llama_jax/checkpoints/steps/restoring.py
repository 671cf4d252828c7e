"""Restoring a step: the newest that verifies, decided alike on all processes; every array compared with what was saved.

What the arrays mean is the caller's affair."""

import hashlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from os import PathLike
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
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
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import UserError
from llama_jax.core.files import absolute
from llama_jax.core.tree import fingerprints, flatten, unflatten

_T = TypeVar("_T")


# Orbax logs an error with a long traceback for every thread that a failed write passes through, and what it left
# waiting for the others complains of the end of their loop. The error itself reaches its caller, which says it in one
# line.
def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno != logging.ERROR or "/orbax/" not in record.pathname + record.getMessage()


def _pass_on(what: Any, otherwise: Callable[[Any], object] = sys.unraisablehook) -> None:
    if str(what.exc_value) != "Event loop is closed":
        otherwise(what)


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_news)
sys.unraisablehook = _pass_on


def leaf_fingerprints(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`core.tree.fingerprints` of leaves that need not all live on the same devices."""
    groups: dict[frozenset[Any], dict[str, jax.Array]] = {}
    for path, leaf in leaves.items():
        groups.setdefault(frozenset(leaf.sharding.device_set), {})[path] = leaf
    return {path: words for group in groups.values() for path, words in fingerprints(group).items()}


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
    directory: epath.Path,
    step: StepChoice | None,
    say: Callable[[str], None],
    read: Callable[[int], _T],
    last: int | None = None,
) -> _T | None:
    """What `read` gives for the newest step for which it does not raise `CheckpointDamagedError`, or for `step` alone
    if that is given; None if there is no checkpoint.

    Args:
        last: the newest step to look at; None: the newest that there is, 0: none.

    Raises:
        CheckpointDamagedError: if there are steps but none verifies.
        UserError: if there is no such step.
    """
    steps = [number for number in from_first(finished_steps(directory)[::-1]) if last is None or number <= last]
    if last and not steps:
        raise UserError(f"no checkpoint of step {last} or before in {directory}")
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


@dataclass(frozen=True)
class Restored:
    """What was read from one step."""

    step: int
    items: dict[str, PyTree]
    """The trees of arrays, in the shapes, dtypes and shardings asked for."""
    files: dict[str, bytes]
    """Plain files by path within the step folder, such as `model/config.json`."""
    manifest: Manifest


@dataclass(frozen=True)
class Verified:
    """A step of which some items are known to be whole."""

    directory: epath.Path
    step: int
    items: tuple[str, ...]
    manifest: Manifest
    files: dict[str, bytes]
    """The plain files asked for, by path within the step folder."""

    def restore(self, targets: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Read array items that were verified into exactly the given shapes, dtypes and shardings.

        Args:
            targets: trees of `jax.ShapeDtypeStruct` with shardings, by item.

        Raises:
            UserError: if the step holds other leaves, shapes or dtypes, naming the first few; nothing is read then.
            CheckpointDamagedError: if an array is not the one that was saved.
        """
        wanted = {item: flatten(tree) for item, tree in targets.items()}
        if not {*wanted} <= {*self.items}:
            raise ValueError(f"only {', '.join(self.items)} of step {self.step} were verified")
        check_fit(self.manifest, _described(targets))
        for item, leaves in wanted.items():
            if any(leaf.sharding is None for leaf in leaves.values()):
                raise ValueError(f"the target of {item} has leaves without a sharding")
        restored = {}
        for item, tree in targets.items():
            leaves = self._read(item, wanted[item]) if wanted[item] else {}
            restored[item] = jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in wanted[item]])
        return restored

    def restore_leaf(self, item: str, path: str, target: jax.ShapeDtypeStruct) -> jax.Array:
        """Read one array of an item that was verified; that the item holds what is wanted is the caller's to check.

        Raises:
            CheckpointDamagedError: it is not the array that was saved.
        """
        return self._read(item, {path: target})[path]

    def _read(self, item: str, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays of one item by path, compared with what was saved."""
        tree = unflatten(targets)
        places = ocp.checkpoint_utils.construct_restore_args(tree)
        arguments = ocp.args.PyTreeRestore(item=tree, restore_args=places, partial_restore=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            read = reader.restore(self.directory / str(self.step), args=ocp.args.Composite(**{item: arguments}))
        leaves = flatten(read[item])
        if missing := [path for path in targets if not isinstance(leaves.get(path), jax.Array)]:
            raise CheckpointDamagedError(f"{item}/{missing[0]}: was not read")
        for path, words in jax.device_get(leaf_fingerprints({path: leaves[path] for path in targets})).items():
            if tuple(map(int, words)) != self.manifest.leaves[item][path].fingerprint:
                raise CheckpointDamagedError(f"{item}/{path}: fingerprint differs")
        return leaves


def find_verified(
    directory: str | PathLike[str], items: Sequence[str], *, step: StepChoice | None = None, say: Callable[[str], None]
) -> Verified | None:
    """The newest step of which the given items verify, so that its plain files can tell what arrays to restore; the
    same on all processes.

    Args:
        directory: folder of the steps.
        items: names of array items and of folders of plain files. No file of another item is opened.
        step: look at this one only; None: the newest first.
        say: told of every step that does not verify.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        CheckpointDamagedError: if there are checkpoints but none verifies.
        UserError: if there is no such step, or it has no such item.
    """
    root = absolute(directory)

    def look(number: int) -> Verified:
        return Verified(root, number, tuple(items), *verify(root, number, items, {}))

    return newest(root, step, say, look)


def restore(
    directory: str | PathLike[str],
    targets: Mapping[str, PyTree],
    *,
    files: Sequence[str] = (),
    step: int | None = None,
    last: int | None = None,
    say: Callable[[str], None],
) -> Restored | None:
    """Restore the newest step that verifies, on all processes the same.

    Args:
        directory: folder of the steps.
        targets: trees of `jax.ShapeDtypeStruct` with shardings, by item; the mesh need not be that of the save.
        files: folders of plain files to read, such as `model`.
        step: restore this one only; None: the newest first.
        last: the newest step to look at; None: the newest that there is, 0: none.
        say: told of every step that does not verify.

    Returns and raises as `find_verified`; UserError also if the step holds something else than asked for.
    """
    root = absolute(directory)
    items = [*targets, *files]
    wanted = _described(targets)

    def read(number: int) -> Restored:
        verified = Verified(root, number, tuple(items), *verify(root, number, items, wanted))
        return Restored(number, verified.restore(targets), verified.files, verified.manifest)

    return newest(root, step, say, read, last)


def _described(trees: Mapping[str, PyTree]) -> dict[str, dict[str, str]]:
    return {
        item: {path: describe(leaf.shape, str(leaf.dtype)) for path, leaf in flatten(tree).items()}
        for item, tree in trees.items()
    }
