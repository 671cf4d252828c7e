"""The step folders of a run: which there are, in what state, and how they are removed.

Nothing relies on append, rename or modification times, so that object stores serve as well as disks. A step is pending
(its marker is there and its manifest is not), acknowledged (its manifest is whole) or damaged (neither)."""

import json
import math
from collections.abc import Callable

from etils import epath

from llama_jax.checkpoints.config import CheckpointConfig
from llama_jax.checkpoints.steps.manifest import MANIFEST, CheckpointDamagedError, read_manifest, sync, verifies

TEMPORARY = "orbax-checkpoint-tmp"
"""How the second part of a folder's name begins that orbax has not committed, as in `40.orbax-checkpoint-tmp`."""

VALIDATION = "validation/loss.json"
"""Plain file of a step that says what its evaluation gave."""


def pending_marker(directory: epath.Path, step: int) -> epath.Path:
    """The file that is there while a step is being written or removed. It is empty, as even a full disk takes it."""
    return directory / f"{step}.pending"


def step_folders(directory: epath.Path) -> list[int]:
    """Numbers of all step folders, whatever their state, ascending."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if _is_step_name(path.name) and path.is_dir())


def _is_step_name(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def is_acknowledged(directory: epath.Path, step: int) -> bool:
    """Whether the manifest and the records of all processes are on disk, whole and of this step."""
    try:
        read_manifest(directory / str(step))
    except CheckpointDamagedError:
        return False
    return True


def acknowledged_steps(directory: epath.Path) -> list[int]:
    """Steps whose save has ended, ascending. Their other files are not looked at."""
    return [step for step in step_folders(directory) if is_acknowledged(directory, step)]


def finished_steps(directory: epath.Path) -> list[int]:
    """Steps whose save has ended, whole or damaged, ascending; to be asked while another process writes or removes.

    The folder comes before the marker goes, so a folder that was listed and has no marker afterwards is finished.
    """
    return [
        step
        for step in step_folders(directory)
        if not pending_marker(directory, step).exists() or is_acknowledged(directory, step)
    ]


def best_step(directory: epath.Path, last: int | None = None) -> int | None:
    """The acknowledged step of the lowest validation loss, the earliest of equals; None where none has one.

    Args:
        last: of the steps to look at; None: of all.
    """
    steps = (step for step in acknowledged_steps(directory) if last is None or step <= last)
    losses = ((validation_loss(directory, step), step) for step in steps)
    return min(((loss, step) for loss, step in losses if loss is not None), default=(0.0, None))[1]


def validation_loss(directory: epath.Path, step: int) -> float | None:
    """What the evaluation at a step gave, if one was made there."""
    file = directory / str(step) / VALIDATION
    try:
        loss = json.loads(file.read_text())["validation_loss"]
    except (OSError, ValueError, KeyError, TypeError):  # a damaged file is found when its step is verified
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def remove_step(directory: epath.Path, step: int) -> None:
    """Remove a step such that, wherever this is interrupted, `clean_up` ends it and nothing takes it for damage."""
    marker, folder = pending_marker(directory, step), directory / str(step)
    marker.touch()
    sync(directory)
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        folder.rmtree()
    marker.unlink(missing_ok=True)


def clean_up(directory: epath.Path) -> list[int]:
    """Remove what interrupted saves and interrupted removals left behind; for the one writer of a directory, while it
    saves nothing. Returns the steps that were removed."""
    if not directory.exists():
        return []
    removed = []
    for path in list(directory.iterdir()):
        name, _, suffix = path.name.partition(".")
        if not _is_step_name(name):
            continue
        if suffix.startswith(TEMPORARY):
            path.rmtree()
        elif suffix == "pending":
            if is_acknowledged(directory, int(name)):
                path.unlink()
            else:
                remove_step(directory, int(name))
                removed.append(int(name))
    return sorted(removed)


def delete_after(directory: epath.Path, step: int) -> list[int]:
    """Remove every step newer than the given one, whole or damaged, newest first; for the one writer of a directory,
    when a run goes back to an older step. Returns the steps that were removed, ascending."""
    newer = [number for number in step_folders(directory) if number > step]
    for number in reversed(newer):
        remove_step(directory, number)
    return newer


def delete_surplus(
    directory: epath.Path, config: CheckpointConfig, just_written: int, say: Callable[[str], None]
) -> list[int]:
    """Remove the steps that `config` does not ask to keep, but none that has fewer than two newer steps that verify.

    Args:
        directory: folder of the steps.
        config: how many to keep.
        just_written: a step whose files were hashed a moment ago; all others are read again, for a step that was whole
            when it was saved need not be so now.
        say: told of damaged steps that are removed.

    Returns:
        The steps that were removed, newest first.
    """
    finished, acknowledged = finished_steps(directory), acknowledged_steps(directory)
    kept = {*acknowledged[-config.keep_last :]}
    if config.keep_every is not None:
        kept |= {step for step in acknowledged if step % config.keep_every == 0}
    if config.keep_best and (best := best_step(directory)) is not None:
        kept.add(best)
    surplus = {*finished} - kept
    newer_good, removed = 0, []
    for step in reversed(finished):
        if step < min(surplus, default=step + 1):
            break
        if step in surplus and newer_good >= 2:
            remove_step(directory, step)
            removed.append(step)
            if step not in acknowledged:
                say(f"checkpoint step {step} was damaged and is removed; two newer ones verify")
        elif newer_good < 2 and (step == just_written or verifies(directory / str(step))):
            newer_good += 1
    return removed
