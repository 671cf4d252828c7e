"""Saving the checkpoints of a run: written in the background, acknowledged only when whole.

A step is a folder with one folder for each item: trees of arrays, written by orbax, and plain files. What the arrays
mean is the caller's affair."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike

import jax
import orbax.checkpoint as ocp

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.folders import (
    acknowledged_steps,
    clean_up,
    delete_surplus,
    is_acknowledged,
    pending_marker,
    remove_step,
)
from llama_jax.checkpoints.steps.manifest import LeafRecord, Manifest, sync, verifies, write_step
from llama_jax.checkpoints.steps.restoring import anywhere, first_line, from_first, leaf_fingerprints
from llama_jax.core.arrays import PyTree
from llama_jax.core.errors import SaveFailedError
from llama_jax.core.files import absolute
from llama_jax.core.tree import flatten, unflatten

_BEGUN, _THERE, _FAILED = range(3)
_SECONDS_FOR_OTHERS = 60.0
"""How long process 0 waits for the hashes of the others before it leaves the removal of old steps to the next save."""


class Checkpoints:
    """The checkpoints of one run, for its only writer. In a run of several processes all of them call `save` and `wait`
    alike, in the same order."""

    def __init__(self, directory: str | PathLike[str], config: CheckpointConfig, *, say: Callable[[str], None]) -> None:
        """
        Args:
            directory: folder of the steps; made at the first save.
            config: how many steps to keep and how many failures in a row to survive.
            say: told in one line of everything that a person should know; called from a thread of its own, too.
        """
        self.directory = absolute(directory)
        self.failed_saves = 0
        """Saves that failed since the start, in all."""
        self.failed_in_a_row = 0
        """Saves that failed since the last that did not."""
        self._config = config
        self._say = say
        self._thread: threading.Thread | None = None
        self._written: set[int] = set()
        self._unsettled: int | None = None
        self._reason: str | None = None

    def steps(self) -> list[int]:
        """Acknowledged steps, ascending."""
        return acknowledged_steps(self.directory)

    def clean_up(self) -> list[int]:
        """Remove what an interrupted save or removal left behind; to be called once by process 0, before the first
        save. Returns the steps that were removed, each of which is said."""
        removed = clean_up(self.directory)
        for step in removed:
            self._say(f"checkpoint step {step} was never finished and is removed")
        return removed

    def save(
        self, step: int, items: Mapping[str, PyTree], files: Mapping[str, bytes], hashes: Mapping[str, str]
    ) -> None:
        """Save a step, unless it is acknowledged already. Returns when the arrays are copied to the host, so they may
        be donated; writing, hashing and the removal of old steps continue in the background. A save that fails is said,
        counted and survived.

        Args:
            step: its number.
            items: trees of arrays by name, the same on all processes.
            files: contents by path, such as `model/config.json`; each path is given by one process only.
            hashes: kept in the manifest: of config, tokenizer, pipeline and whatever a reader may want to compare.

        Raises:
            SaveFailedError: if `max_failed_saves` saves in a row have failed.
            ValueError: if names clash or a leaf is not an array.
        """
        _check(items, files)
        self.wait()
        trees = {item: flatten(tree) for item, tree in items.items()}
        fingerprints = {item: leaf_fingerprints(leaves) for item, leaves in trees.items()}
        begun = from_first([self._begin(step) if jax.process_index() == 0 else _BEGUN])[0]
        self._unsettled = None if begun == _THERE else step
        if begun == _FAILED and jax.process_index() > 0:
            self._fail(step, OSError("process 0 could not begin"))
        if begun != _BEGUN:
            return
        arguments = {item: ocp.args.PyTreeSave(unflatten(leaves)) for item, leaves in trees.items() if leaves}
        saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        try:
            saver.save(self.directory / str(step), args=ocp.args.Composite(**arguments))
        except Exception as error:
            self._abandon(step, error)
            return
        shapes = {item: {path: (leaf.shape, str(leaf.dtype)) for path, leaf in trees[item].items()} for item in trees}
        manifest = partial(_manifest, step, shapes, fingerprints, dict(hashes))
        # Not a daemon: a program that ends by an error elsewhere still finishes its last checkpoint.
        self._thread = threading.Thread(target=self._finish, args=(step, saver, manifest, dict(files)))
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being saved.

        Raises:
            SaveFailedError: if `max_failed_saves` saves in a row have failed.
        """
        self.close()
        if self._unsettled is not None:
            failed = anywhere(self._reason is not None)
            if failed and self._reason is None:
                self._fail(self._unsettled, OSError("another process could not write its part"))
            self._unsettled = None
            if not failed:
                self.failed_in_a_row = 0
            elif jax.process_count() > 1 and jax.process_index() == 0:
                self._remove_leftovers()
        if self.failed_in_a_row >= self._config.max_failed_saves:
            raise SaveFailedError(f"{self.failed_in_a_row} saves in a row failed, the last because: {self._reason}")
        self._reason = None

    def close(self) -> None:
        """Wait for the background, whatever became of it; may be called by one process alone."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _begin(self, step: int) -> int:
        """Make room for a step and mark it as pending, on process 0."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            clean_up(self.directory)
            if (folder := self.directory / str(step)).exists():
                if is_acknowledged(self.directory, step) and (step in self._written or verifies(folder)):
                    return _THERE
                self._say(f"checkpoint step {step} does not verify; it is removed and saved again")
                remove_step(self.directory, step)
            pending_marker(self.directory, step).touch()
            sync(self.directory)
        except OSError as error:
            self._fail(step, error)
            return _FAILED
        return _BEGUN

    def _finish(
        self, step: int, saver: ocp.AsyncCheckpointer, manifest: Callable[[], Manifest], files: Mapping[str, bytes]
    ) -> None:
        """The part of a save that runs in the background."""
        try:
            saver.wait_until_finished()
            write_step(self.directory / str(step), manifest(), files, jax.process_index(), jax.process_count())
        except Exception as error:
            self._abandon(step, error)
            return
        finally:
            saver.close()
        self._written.add(step)
        if jax.process_index() == 0:
            try:
                self._acknowledged(step)
            except OSError as error:
                self._say(f"checkpoints older than step {step} could not be removed: {first_line(error)}")

    def _acknowledged(self, step: int) -> None:
        """End a save on process 0: take the marker away and remove what need not be kept."""
        deadline = time.monotonic() + _SECONDS_FOR_OTHERS
        while not is_acknowledged(self.directory, step):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        pending_marker(self.directory, step).unlink(missing_ok=True)
        delete_surplus(self.directory, self._config, step, self._say)

    def _fail(self, step: int, error: Exception) -> None:
        self._reason = first_line(error)
        self.failed_saves += 1
        self.failed_in_a_row += 1
        self._say(f"checkpoint step {step} was not saved ({self.failed_in_a_row} in a row): {self._reason}")
        logging.getLogger(__name__).debug("checkpoint step %d was not saved", step, exc_info=error)

    def _abandon(self, step: int, error: Exception) -> None:
        self._fail(step, error)
        # With several processes the others may still be writing; `wait` removes what is left once all have ended.
        if jax.process_count() == 1:
            self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove a failed save, several times: when one write fails orbax does not wait for those that are under way,
        and they make their folders again. What comes even later is removed before the next save."""
        problem = None
        for pause_seconds in (0.0, 0.1, 0.3, 1.0):
            time.sleep(pause_seconds)
            try:
                clean_up(self.directory)
                problem = None
            except OSError as error:
                problem = error
        if problem is not None:
            self._say(f"the remains of a failed save could not be removed yet: {first_line(problem)}")


def _check(items: Mapping[str, PyTree], files: Mapping[str, bytes]) -> None:
    for item, tree in items.items():
        leaves = jax.tree.leaves(tree)
        if len(flatten(tree)) != len(leaves) or not all(isinstance(leaf, jax.Array) for leaf in leaves):
            raise ValueError(f"checkpoint item {item}: not a tree of arrays with a path of its own each")
    if not any(jax.tree.leaves(tree) for tree in items.values()):
        raise ValueError("a checkpoint needs at least one array")
    for name in files:
        if "/" not in name or {"", ".", ".."} & {*name.split("/")} or name.split("/")[0] in items:
            raise ValueError(f"checkpoint file {name}: must lie in a folder that is not an array item")


def _manifest(
    step: int,
    shapes: Mapping[str, Mapping[str, tuple[tuple[int, ...], str]]],
    fingerprints: Mapping[str, Mapping[str, jax.Array]],
    hashes: dict[str, str],
) -> Manifest:
    """The manifest of a step; waits until the fingerprints are computed."""
    words = jax.device_get(fingerprints)
    leaves = {
        item: {path: LeafRecord(*tree[path], fingerprint=tuple(map(int, words[item][path]))) for path in tree}
        for item, tree in shapes.items()
    }
    return Manifest(step, leaves, hashes, {"jax": jax.__version__, "orbax": ocp.__version__}, {})
