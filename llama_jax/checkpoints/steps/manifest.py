"""What makes a step folder a checkpoint: a manifest, and the size and SHA-256 of every file.

Works on the files of one step, independent of arrays and of what writes them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from llama_jax.core.errors import CannotGoOnError
from llama_jax.core.files import is_remote

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointDamagedError(CannotGoOnError):
    """A checkpoint, or every checkpoint of a directory, is not what was written. Not the user's mistake, and never a
    reason to start from scratch."""


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class LeafRecord:
    """What an array must be."""

    shape: tuple[int, ...]
    dtype: str
    fingerprint: tuple[int, ...]
    """As `core.tree.fingerprints` gives it."""


def describe(shape: Sequence[int], dtype: str) -> str:
    """`float32[2,64,192]`."""
    return f"{dtype}[{','.join(map(str, shape))}]"


@dataclass(frozen=True)
class Manifest:
    """All that a step says about itself."""

    step: int
    leaves: dict[str, dict[str, LeafRecord]]
    """By array item, then by path within its tree."""
    hashes: dict[str, str]
    """Of the config, the tokenizer, the data pipeline and the like, as the writer gave them."""
    versions: dict[str, str]
    files: dict[str, FileRecord]
    """By path within the step folder; every file but the manifest itself and the files' records."""

    def files_of(self, item: str) -> list[str]:
        """Files that are read to restore an item, sorted. The loose files of the step folder belong to every array
        item."""
        loose = item in self.leaves
        return sorted(name for name in self.files if name.startswith(f"{item}/") or (loose and "/" not in name))

    def items(self) -> list[str]:
        """Names of the array items and of the folders of plain files."""
        return sorted({*self.leaves, *(name.split("/")[0] for name in self.files if "/" in name)})


def seal(content: Mapping[str, Any]) -> bytes:
    """The JSON text of `content` with the SHA-256 of its own canonical form under the key `sha256`."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, sort_keys=True, indent=1).encode()


def unseal(path: epath.Path) -> dict[str, Any]:
    """The content of a file that `seal` made.

    Raises:
        CheckpointDamagedError: if the file is missing or differs in any byte from what `seal` made.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointDamagedError(f"{path.name}: missing") from None
    try:
        content = json.loads(data)
        del content["sha256"]
        if seal(content) == data:
            return content
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise CheckpointDamagedError(f"{path.name}: is not what was written")


def _record_name(process: int, process_count: int) -> str:
    return f"files-{process}-of-{process_count}.json"


def read_manifest(folder: epath.Path) -> Manifest:
    """The manifest of a step folder, with the records of every process that wrote it.

    Raises:
        CheckpointDamagedError: if any part is missing, altered, or belongs to another step.
    """
    step = int(folder.name)
    content = unseal(folder / MANIFEST)
    if content["format"] != FORMAT:
        raise CheckpointDamagedError(f"{MANIFEST}: format {content['format']} is unknown, {FORMAT} is known")
    if content["step"] != step:
        raise CheckpointDamagedError(f"{MANIFEST}: belongs to step {content['step']}")
    files: dict[str, FileRecord] = {}
    count = content["process_count"]
    for process in range(count):
        name = _record_name(process, count)
        part = unseal(folder / name)
        if (part["step"], part["process"], part["process_count"]) != (step, process, count):
            raise CheckpointDamagedError(f"{name}: belongs to step {part['step']}, process {part['process']}")
        files |= {path: FileRecord(**record) for path, record in part["files"].items()}
    leaves = {
        item: {
            path: LeafRecord(tuple(leaf["shape"]), leaf["dtype"], tuple(leaf["fingerprint"]))
            for path, leaf in records.items()
        }
        for item, records in content["leaves"].items()
    }
    return Manifest(step, leaves, content["hashes"], content["versions"], files)


def record_of(path: epath.Path) -> FileRecord:
    """Size and SHA-256 of a file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            size += len(piece)
    return FileRecord(size, digest.hexdigest())


def first_damage(manifest: Manifest, names: Sequence[str], record: Callable[[str], FileRecord]) -> str | None:
    """What is wrong with the first of the named files that is not what the manifest says, or None.

    Args:
        record: reads a file by its name; called from several threads.
    """

    def look(name: str) -> str | None:
        expected = manifest.files[name]
        try:
            found = record(name)
        except (FileNotFoundError, NotADirectoryError):
            return f"{name}: missing"
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror or error})"
        if found.size != expected.size:
            return f"{name}: {found.size} bytes, {expected.size} were written"
        return None if found.sha256 == expected.sha256 else f"{name}: sha256 differs"

    with ThreadPoolExecutor(4) as pool:
        return next((problem for problem in pool.map(look, names) if problem), None)


def verifies(folder: epath.Path) -> bool:
    """Whether the manifest is whole and every file of the step is what it says; reads all files."""
    try:
        manifest = read_manifest(folder)
    except CheckpointDamagedError:
        return False
    return first_damage(manifest, sorted(manifest.files), lambda name: record_of(folder / name)) is None


def files_below(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Paths of all files below a folder, relative to it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name


def sync(path: epath.Path) -> None:
    """Force a local file or folder to the disk, so that it outlives a loss of power."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_step(
    folder: epath.Path, manifest: Manifest, files: Mapping[str, bytes], process: int, process_count: int
) -> None:
    """Write one process's part of a step into the folder that already has the arrays; process 0 writes the manifest.

    Each process vouches for the plain files it writes itself and for its share of all array files, which are final.
    What the others write meanwhile is theirs to hash.

    Args:
        folder: the step folder.
        manifest: all but its `files`.
        files: this process's plain files, by path within the folder.
        process: index of this process.
        process_count: number of processes, each of which calls this.
    """
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    loose = [path.name for path in folder.iterdir() if not path.is_dir() and not _is_record(path.name)]
    items = [item for item, leaves in manifest.leaves.items() if leaves]
    below = [f"{item}/{name}" for item in items for name in files_below(folder / item)]
    names = [*sorted([*loose, *below])[process::process_count], *sorted(files)]
    with ThreadPoolExecutor(4) as pool:  # as one stream leaves an object store idle
        records = dict(zip(names, pool.map(lambda name: record_of(folder / name), names), strict=True))
    parents = {parent for name in names for parent in epath.Path(name).parents}
    for name in [*names, *sorted(parents)]:
        sync(folder / name)
    identity = {"format": FORMAT, "step": manifest.step, "process_count": process_count}
    contents = {"files": {name: asdict(record) for name, record in records.items()}}
    _write(folder / _record_name(process, process_count), {**identity, "process": process, **contents})
    if process == 0:
        leaves = {item: {path: asdict(leaf) for path, leaf in tree.items()} for item, tree in manifest.leaves.items()}
        stated = {"leaves": leaves, "hashes": manifest.hashes, "versions": manifest.versions}
        _write(folder / MANIFEST, {**identity, **stated})
    sync(folder)
    sync(folder.parent)


def _write(path: epath.Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(seal(content))
    sync(path)


def _is_record(name: str) -> bool:
    return name == MANIFEST or (name.startswith("files-") and name.endswith(".json"))
