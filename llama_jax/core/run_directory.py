"""The run directory: its configuration, where its files are, who may write to it, and its log."""

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml
from etils import epath

from llama_jax.core.errors import UserError
from llama_jax.core.files import GrowingFile, missing_folders, remove_empty, write_whole
from llama_jax.core.processes.lock import WriterLock
from llama_jax.core.settings.command_line import to_yaml

_PACKAGES = ("llama_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunDirectory(contextlib.AbstractContextManager["RunDirectory"]):
    """Paths of one run. Made by `open_run`, and closed at the end of a `with` block, or by `close`.

    Until `begin` is called nothing is written: a command that is refused leaves everything as it was."""

    def __init__(self, path: epath.PathLike, *, is_main_process: bool = True) -> None:
        """Name the paths; nothing is read or written."""
        self.path = epath.Path(path)
        self.config_path = self.path / "config.yaml"
        """The resolved configuration, for `--config`."""
        self.environment = self.path / "environment.json"
        """Versions, devices and start time of the latest start."""
        self.checkpoints = self.path / "checkpoints"
        """Folder of the checkpoints, one folder a step."""
        self.metrics = self.path / "metrics.jsonl"
        """One JSON object a step; see `recording.metrics.JsonLines`."""
        self.samples = self.path / "samples.jsonl"
        """One JSON object for each time that the model answered the fixed prompts."""
        self.losses_before = self.path / "losses_before.json"
        """The losses on held-out examples before training."""
        self.rollbacks = self.path / "rollbacks.json"
        """Where the run went back, and which batches it leaves out since; see `runs.history`."""
        self.scores = self.path / "scores.png"
        """The picture of the scores that a reward model gives to held-out answers."""
        self.verdict = self.path / "verdict.json"
        """What came of the run, and whether it may be believed; see `runs.verdict`."""
        self.log = self.path / "log.txt"
        """What `say` printed, with times in UTC."""
        self.curves = self.path / "curves.png"
        """The picture of the metrics."""
        self.tensorboard = self.path / "tensorboard"
        """Folder of event files."""
        self.profile = self.path / "profile"
        """Folder of `jax.profiler` traces."""
        self.opened = time.time()
        """Unix time."""
        self.faults = self.path / "faults"
        """Folder of what each process reports of faults, a file a process."""
        self.is_main_process = is_main_process
        self._lock: WriterLock | None = None
        self._log: GrowingFile | None = None
        self._has_begun = False
        self._made: list[epath.Path] = []
        self._provisional: list[epath.Path] = []
        self._held_files: dict[epath.Path, str | bytes] = {}
        self._held_lines: list[str] = []

    def __exit__(self, *_: object) -> None:
        self.close()

    def has_progress(self) -> bool:
        """Whether a step was recorded or a checkpoint written."""
        recorded = self.metrics.exists() and self.metrics.stat().length > 0
        return recorded or any(_steps(self.checkpoints))

    def lock(self) -> None:
        """Become the one writer of this run until `close` or the end of the process; see `WriterLock`. The folder is
        made if it is missing.

        Raises:
            UserError: another process writes to this run.
        """
        if self._lock is None:
            self._made = missing_folders(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.path, f"--run_dir {self.path}")

    def begin(self) -> None:
        """Write what was held until it was known that the run goes on, and from now on at once. May be called again."""
        if self._has_begun or not self.is_main_process:
            return
        self._has_begun = True
        self.path.mkdir(parents=True, exist_ok=True)
        for path, content in self._held_files.items():
            write_whole(path, content)
        self._log = GrowingFile(self.log)
        for line in self._held_lines:
            self._log.write(line)

    def keep(self, path: epath.Path, content: str | bytes) -> None:
        """Write a file of this directory once the run has begun; only the main process does anything."""
        if self._has_begun:
            write_whole(path, content)
        elif self.is_main_process:
            self._held_files[path] = content

    def hold(self, folder: epath.Path) -> None:
        """A folder of this directory that was made by other means, and that goes again unless the run begins."""
        self._provisional.append(folder)

    def say(self, text: str) -> None:
        """Print a line and add it to the log; only the main process does anything."""
        if not self.is_main_process:
            return
        print(text, flush=True)
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}"
        if self._log is None:
            self._held_lines.append(line)
        else:
            self._log.write(line)

    def close(self) -> None:
        """Finish the log and let others write to this run. Where it did not begin, the folder is as it was found."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.close(as_found=not self._has_begun)
        if not self._has_begun:
            for folder in self._provisional:
                if folder.exists():
                    folder.rmtree()
            remove_empty(self._made)
        self._log = self._lock = None


def open_run(
    path: epath.PathLike,
    config: Any,
    *,
    command: str,
    free: Collection[str] = (),
    resume: int | Literal["auto", "never"] = "auto",
    is_main_process: bool = True,
) -> RunDirectory:
    """Open a new run, or one to be resumed, whose `begin` is called once it is known to go on. Every process calls
    this; the main process locks and writes.

    Every process compares the configurations, so that on a shared disk all of them refuse together.

    Args:
        path: the folder, made if missing.
        config: the resolved configuration (a dataclass); kept as `config.yaml`.
        command: name of the command that reads such a configuration.
        free: settings, or whole sections, that may differ from those the run began with.
        resume: "never" refuses a run that has made progress.
        is_main_process: whether this process writes.

    Raises:
        UserError: there is progress and the configuration contradicts that of the run, or is gone, there is progress to
            protect, or another process is writing.
    """
    run = RunDirectory(path, is_main_process=is_main_process)
    if is_main_process:
        run.lock()
    try:
        # An attempt that failed before its first step has nothing to protect: its mistake may be corrected.
        if run.has_progress():
            if resume == "never":
                raise UserError(
                    f"--resume never: {path} is a run with progress; choose another --run_dir, or remove it"
                )
            if not run.config_path.exists():
                raise UserError(
                    f"--run_dir {path}: has progress, but its config.yaml is gone, which says how it was made; restore "
                    "that file, or choose another --run_dir"
                )
            _check_command(run, command)
            _check_same(run, load_config(path), yaml.safe_load(to_yaml(config)), free)
    except UserError:
        run.close()
        raise
    keep_config(run, config, command)
    if is_main_process:
        run.keep(run.environment, json.dumps(_environment(), indent=2) + "\n")
    return run


_COMMAND = re.compile(rb"# python -m llama_jax\.([\w ]+?) --config ")


def _check_command(run: RunDirectory, command: str) -> None:
    """Raise a `UserError` if another command made the run; of an older one it is not known."""
    made_by = _COMMAND.match(run.config_path.read_bytes())
    if made_by is not None and (other := made_by[1].decode()) != command:
        raise UserError(f"--run_dir {run.path}: is a run of {other}; choose another --run_dir for {command}")


def keep_config(run: RunDirectory, config: Any, command: str) -> None:
    """Keep the configuration of a run that was opened; done again when more of it is known."""
    run.keep(run.config_path, f"# python -m llama_jax.{command} --config {run.config_path}\n{to_yaml(config)}")


def load_config(run_path: epath.PathLike) -> dict[str, Any]:
    """The configuration of a run as plain values.

    Raises:
        UserError: the folder is not a run, or its configuration is damaged.
    """
    path = RunDirectory(run_path).config_path
    if not path.exists():
        raise UserError(f"{run_path}: not a run directory, it has no config.yaml")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged: not a mapping of settings")
    return config


def newest_run(root: str | os.PathLike[str] = "runs", fits: Callable[[Path], bool] = lambda run: True) -> Path | None:
    """The run below `root` that was started last, by its own record, among those with a finished checkpoint that
    fit."""
    started: list[tuple[str, Path]] = []
    for pattern in ("*/environment.json", "*/*/environment.json"):
        for file in Path(root).glob(pattern):
            finished = (step / "manifest.json" for step in _steps(epath.Path(file.parent / "checkpoints")))
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if any(manifest.exists() for manifest in finished):
                    started.append((str(json.loads(file.read_text())["started"]), file.parent))
    return next((run for _, run in sorted(started, reverse=True) if fits(run)), None)


def saved_steps(path: epath.PathLike) -> frozenset[str]:
    """Names of the finished checkpoints of a run, or of the runs in a directory."""
    directory = epath.Path(path)
    found = (directory.glob(f"{folder}checkpoints/*/manifest.json") for folder in ("", "*/"))
    return frozenset(str(manifest) for each in found for manifest in each)


def _steps(checkpoints: epath.Path) -> Iterator[epath.Path]:
    """Folders named by a step."""
    return (folder for folder in checkpoints.iterdir() if folder.name.isdigit()) if checkpoints.exists() else iter(())


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings with their old and new value. One that only a newer or older version of the package has is passed."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in old.keys() & new.keys():
            yield from _differences(old[key], new[key], f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _check_same(run: RunDirectory, old: dict[str, Any], new: dict[str, Any], free: Collection[str]) -> None:
    bound = sorted(
        (path, was, now)
        for path, was, now in _differences(old, new)
        if not any(path == name or path.startswith(f"{name}.") for name in free)
    )
    if bound:
        listed = "; ".join(
            f"{path} is {json.dumps(was)} in this run, not {json.dumps(now)}" for path, was, now in bound
        )
        raise UserError(f"--run_dir {run.path}: {listed}; give the same value, or another --run_dir")


def _environment() -> dict[str, Any]:
    """What a result may depend on. Of the environment variables only XLA_FLAGS: others may hold secrets."""
    import jax  # only here: commands that read a run start without it

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "started": datetime.now(UTC).isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
    }
