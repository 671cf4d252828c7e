"""Restoring a step: verified before it is read, and every array compared with what was saved.

What the arrays mean is the caller's affair."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from llama_jax.checkpoints.config import StepChoice
from llama_jax.checkpoints.steps.manifest import CheckpointDamagedError, Manifest, describe
from llama_jax.checkpoints.steps.verification import check_fit, newest, verify
from llama_jax.core.arrays import PyTree
from llama_jax.core.files import absolute
from llama_jax.core.tree import fingerprints, flatten, unflatten

# Orbax logs an error with a long traceback for every thread that a failed write passes through; the error itself
# reaches its caller, which says it in one line.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(
        lambda record: record.levelno != logging.ERROR or "/orbax/" not in record.pathname + record.getMessage()
    )


def leaf_fingerprints(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`core.tree.fingerprints` of leaves that need not all live on the same devices."""
    groups: dict[frozenset[Any], dict[str, jax.Array]] = {}
    for path, leaf in leaves.items():
        groups.setdefault(frozenset(leaf.sharding.device_set), {})[path] = leaf
    return {path: words for group in groups.values() for path, words in fingerprints(group).items()}


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
    say: Callable[[str], None],
) -> Restored | None:
    """Restore the newest step that verifies, on all processes the same.

    Args:
        directory: folder of the steps.
        targets: trees of `jax.ShapeDtypeStruct` with shardings, by item; the mesh need not be that of the save.
        files: folders of plain files to read, such as `model`.
        step: restore this one only; None: the newest first.
        say: told of every step that does not verify.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        CheckpointDamagedError: if there are checkpoints but none verifies.
        UserError: if there is no such step, or it holds something else than asked for.
    """
    root = absolute(directory)
    items = [*targets, *files]
    wanted = _described(targets)

    def read(number: int) -> Restored:
        verified = Verified(root, number, tuple(items), *verify(root, number, items, wanted))
        return Restored(number, verified.restore(targets), verified.files, verified.manifest)

    return newest(root, step, say, read)


def _described(trees: Mapping[str, PyTree]) -> dict[str, dict[str, str]]:
    return {
        item: {path: describe(leaf.shape, str(leaf.dtype)) for path, leaf in flatten(tree).items()}
        for item, tree in trees.items()
    }
