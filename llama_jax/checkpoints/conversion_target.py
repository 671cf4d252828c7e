"""The place a conversion writes to: what may be replaced there, and how what was written gets its name.

Only what `convert` itself wrote is replaced. Its report lists those files, so that anything else is noticed."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from llama_jax.checkpoints.steps.manifest import files_below, record_of
from llama_jax.core.errors import UserError
from llama_jax.core.files import is_remote

REPORT = "conversion_report.json"
"""Written into the target's directory, or beside its file as `NAME.conversion_report.json`."""
_HASHED_BYTES = 2**20
"""Files up to this size are known by their content, larger ones, which nobody edits, by their size."""


@dataclass(frozen=True)
class Target:
    """Where a conversion goes. Made by `find_target`."""

    option: str
    """As it was given, for messages."""
    path: epath.Path
    """From the root, links resolved."""
    is_directory: bool
    """Whether the format is a directory."""
    overwrite: bool
    """Whether what `convert` wrote may be replaced."""

    @property
    def report(self) -> epath.Path:
        """Where the report is once the result has its name."""
        return self.path / REPORT if self.is_directory else self.path.with_name(f"{self.path.name}.{REPORT}")

    @property
    def partial(self) -> epath.Path:
        """The directory beside it in which the result is written."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def _replaced(self) -> epath.Path:
        """Where a directory is while another takes its name."""
        return self.path.with_name(f".{self.path.name}.replaced")

    def check(self, sources: Iterable[str | None]) -> None:
        """Make sure that the name is free, or taken by what `convert` wrote and may replace.

        Args:
            sources: paths that are read.

        Raises:
            UserError: it is not.
        """
        here = f"--target {self.option}"
        if not self.path.exists():
            return
        if not self.overwrite:
            raise UserError(f"{here}: exists; name another, or replace what convert wrote with --overwrite true")
        for source in sources:
            if source is not None and self._holds(source):
                raise UserError(f"{here}: holds {source}, which is to be converted, so it is not replaced")
        if self.path.is_dir() != self.is_directory:
            kinds = ("a file", "a directory") if self.is_directory else ("a directory", "a file")
            raise UserError(f"{here}: is {kinds[0]}, and the format is {kinds[1]}; name another")
        written = self._written()
        if written is None:
            raise UserError(
                f"{here}: is not replaced, for convert did not write it (no {self.report.name} lists its files); name "
                "another, or remove it"
            )
        names = sorted(files_below(self.path)) if self.is_directory else [self.path.name]
        for name in names:
            if name != REPORT and not _is(self._folder / name, written.get(name)):
                why = "was changed since convert wrote it" if name in written else "is not of convert"
                raise UserError(f"{here}: is not replaced, for {name} {why}; move that away, or name another target")

    def place(self, written: epath.Path, sources: Iterable[str | None]) -> None:
        """Give what was written its name; of a single file, what belongs beside it first. Wherever this is
        interrupted, the old or the new is there whole.

        Args:
            written: the directory with the result and its report; it is gone afterwards.
            sources: see `check`.

        Raises:
            UserError: see `check`; or beside the file there is another of somebody else with a name that it needs.
        """
        self.check(sources)  # for what may have come meanwhile
        if self.is_directory:
            self._replace_directory(written)
            return
        ours = self._written() or {}
        moves = {path: self.path.with_name(path.name) for path in written.iterdir()}
        for path, place in moves.items():
            is_ours = path.name == self.report.name or _is(place, ours.get(path.name))
            if place.exists() and not is_ours and record_of(place) != record_of(path):
                raise UserError(f"--target {self.option}: needs the name {place}, which is another file; move that")
        for path, place in sorted(moves.items(), key=lambda move: move[1] == self.path):
            path.replace(place)
        written.rmtree()

    def clean_up(self) -> None:
        """Make good what an interrupted conversion to this target left behind."""
        if self.partial.exists():
            self.partial.rmtree()
        if self._replaced.exists() and self.path.exists():
            self._replaced.rmtree()
        elif self._replaced.exists():
            self._replaced.rename(self.path)

    def _replace_directory(self, written: epath.Path) -> None:
        if self.path.exists():
            self.path.rename(self._replaced)
        try:
            written.rename(self.path)
        finally:
            self.clean_up()

    @property
    def _folder(self) -> epath.Path:
        """What the names in the report are relative to."""
        return self.path if self.is_directory else self.path.parent

    def _holds(self, source: str) -> bool:
        place = epath.Path(source) if is_remote(source) else epath.Path(os.path.realpath(source))
        return place == self.path or self.path in place.parents

    def _written(self) -> Mapping[str, Any] | None:
        """What the last conversion to this target wrote; None where there is no such report."""
        try:
            files = json.loads(self.report.read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return files if isinstance(files, dict) else None


def find_target(option: str, *, is_directory: bool, overwrite: bool) -> Target:
    """The target that `--target` names."""
    path = epath.Path(option) if is_remote(option) else epath.Path(os.path.realpath(option))
    return Target(option, path, is_directory, overwrite)


def written_files(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """What the report says of the files below a folder."""
    return {name: _record(folder / name) for name in sorted(files_below(folder))}


def _record(path: epath.Path) -> dict[str, Any]:
    size = path.stat().length
    return {"bytes": size, "sha256": record_of(path).sha256 if size <= _HASHED_BYTES else None}


def _is(path: epath.Path, record: Any) -> bool:
    """Whether a file is what a report says of it."""
    try:
        return record == _record(path)
    except OSError:  # a link to nowhere, or one that may not be read
        return False
