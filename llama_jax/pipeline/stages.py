"""Which stages are made: those that are done and still as they were written are not made again."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from llama_jax.checkpoints.steps.folders import finished_steps
from llama_jax.checkpoints.steps.manifest import verifies
from llama_jax.core.errors import UserError
from llama_jax.core.files import write_whole
from llama_jax.core.json_files import read_json
from llama_jax.core.settings.command_line import to_yaml
from llama_jax.runs.config import RunConfig


class Stage(NamedTuple):
    """A run of its own."""

    name: str
    config: RunConfig
    make: Callable[[Any], None]
    """The command: makes the run, or goes on with it."""
    elsewhere: str | None
    """What is taken instead of its result."""


class Done:
    """What was asked of the stages that are done, where they ended, and where those before them had: `done.json` of the
    run directory.

    Raises:
        UserError: that file is damaged.
    """

    def __init__(self, run_dir: str) -> None:
        self._path = epath.Path(run_dir) / "done.json"
        self._stages: dict[str, Any] = {}
        if self._path.exists():
            try:
                self._stages = read_json(self._path, max_bytes=2**20)
            except UserError as error:
                raise UserError(f"{error}; remove it: the stages are looked at again without it") from None

    def step(self, stage: Stage, before: Mapping[str, int]) -> int | None:
        """The step at which a stage ended as it is asked for now, and whose files are still what was written.

        Args:
            before: Steps at which those before it have ended.

        Raises:
            UserError: it was made after other steps of these.
        """
        found = self._stages.get(stage.name, {})
        folder = epath.Path(stage.config.run_dir) / "checkpoints"
        if found.get("asked") != _digest(stage.config) or finished_steps(folder)[-1:] != [found["step"]]:
            return None
        for name, step in found["before"].items():
            if step != before.get(name, step):
                raise UserError(
                    f"--run_dir {stage.config.run_dir}: was made after step {step} of {name}, which is at step "
                    f"{before[name]} now; remove that folder, or take another --run_dir"
                )
        return found["step"] if verifies(folder / str(found["step"])) else None

    def add(self, stage: Stage, before: Mapping[str, int]) -> int:
        """Keep that it has ended; gives its last step."""
        last = finished_steps(epath.Path(stage.config.run_dir) / "checkpoints")[-1]
        self._stages[stage.name] = {"asked": _digest(stage.config), "step": last, "before": dict(before)}
        write_whole(self._path, json.dumps(self._stages, indent=2) + "\n")
        return last


def make_stages(run_dir: str, stages: Sequence[Stage]) -> None:
    """Make the stages one after the other, or go on where they were left; says which are not made.

    Raises:
        UserError: a stage was made after another result of one before it.
        SavedAfterSignal: a signal ended one of them.
    """
    done, ended = Done(run_dir), dict[str, int]()
    for number, stage in enumerate(stages, 1):
        title = f"stage {number} of {len(stages)}, {stage.name}"
        if stage.elsewhere is not None:
            print(f"{title}: not made, taking {stage.elsewhere}", flush=True)
            continue
        step = done.step(stage, ended)
        if step is not None:
            print(f"{title}: done, {stage.config.run_dir} is at step {step} and verifies", flush=True)
        else:
            print(f"{title}: {stage.config.run_dir}", flush=True)
            stage.make(stage.config)
            step = done.add(stage, ended)
        ended[stage.name] = step


def _digest(config: RunConfig) -> str:
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def result_of(stage: Stage) -> str:
    """Where the model is that a stage made, or that is taken instead."""
    return stage.elsewhere or str(Path(stage.config.run_dir))
