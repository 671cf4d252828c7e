"""Where documents come from: files of text or JSON lines, and the documentation of Python's standard library.

Documents are strings with random access, in an order that depends on nothing but the source. Knows nothing of tokens.
"""

import ast
import bisect
import gc
import hashlib
import inspect
import itertools
import json
import os
import re
import sysconfig
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import numpy as np
from etils import epath

from llama_jax.core.arrays import Int
from llama_jax.core.errors import UserError, nearest
from llama_jax.data.config import DataConfig

_TEXT_SUFFIXES = (".txt", ".md")
_SUFFIXES = (*_TEXT_SUFFIXES, ".jsonl")
_DOCUMENT_BYTES = 16 * 1024
_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")
_HELD_OUT_SEED = 0
_NOT_DOCUMENTATION = {
    *("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"),
    *("ensurepip", "__pycache__"),
    "encodings",  # a hundred modules whose documentation differs in one name: near-copies on both sides of a hold-out
}


@runtime_checkable
class Documents(Protocol):
    """Texts by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def identity(self) -> str:
        """One line that changes when a document, its place or the way of reading it does, and on no other ground."""
        ...


class TextDocuments:
    """Documents held in memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> str:
        return self._texts[index]

    def identity(self) -> str:
        digest = hashlib.sha256()
        for text in self._texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return f"texts sha256:{digest.hexdigest()}"


class SelectedDocuments:
    """Some of the documents of another source.

    Args:
        documents: The source selected from.
        indices: Numbers of its documents, in the order wanted.
        name: What the selection is; with the identity of `documents` it must determine `indices`.
    """

    def __init__(self, documents: Documents, indices: Int[np.ndarray, "selected"], name: str) -> None:
        self._documents = documents
        self._indices = indices
        self._name = name

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> str:
        return self._documents[int(self._indices[index])]

    def identity(self) -> str:
        return f"{self._documents.identity()}, {self._name}"


@dataclass(frozen=True)
class _File:
    path: epath.Path
    name: str
    """The path below the directory that was named, for the identity: a corpus may be moved."""
    bounds: Int[np.ndarray, "documents two"]
    """First byte of each document and the byte after its last."""
    sha256: str

    @property
    def holds_records(self) -> bool:
        return self.path.suffix.lower() == ".jsonl"

    def read(self, index: int) -> bytes:
        start, end = (int(bound) for bound in self.bounds[index])
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(end - start)
        if len(content) != end - start:
            raise UserError(f"{self.path}: ends before byte {end}; it was changed after it had been indexed")
        return content

    def has_text(self) -> bool:
        return any(self.holds_records or self.read(index).strip() for index in range(len(self.bounds)))

    def line_number(self, index: int) -> int:
        """From 1. Counted only for a message, so no index of lines is kept."""
        left, lines = int(self.bounds[index][0]), 1
        with self.path.open("rb") as file:
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                lines += chunk.count(b"\n")
                left -= len(chunk)
        return lines


class FileDocuments:
    """Documents in files, read when they are asked for; only their offsets (16 bytes each) are held in memory."""

    def __init__(self, files: Sequence[_File], text_field: str) -> None:
        self._files = files
        self._text_field = text_field
        self._ends = list(itertools.accumulate(len(file.bounds) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        """The text of a document.

        Raises:
            UserError: a JSON line has no usable text; names file and line.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        file = self._files[number]
        within = index - (self._ends[number] - len(file.bounds))
        content = file.read(within)
        if not file.holds_records:
            return content.decode()
        try:
            return record_text(content, self._text_field)
        except ValueError as error:
            raise UserError(f"{file.path}:{file.line_number(within)}: {error}") from None

    def identity(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.name}\0{file.sha256}\n".encode())
        if any(file.holds_records for file in self._files):
            digest.update(self._text_field.encode())
        return f"files sha256:{digest.hexdigest()}"


def record_text(line: bytes, text_field: str) -> str:
    """The text of one JSON record. The only place that decides what a good record is.

    Raises:
        ValueError: the record is bad; the message says how, the caller knows where.
    """
    try:
        record = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        raise ValueError(f"not JSON that can be read: {str(error).split(';')[0]}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}; each line must be an object with the field '{text_field}'")
    if text_field not in record:
        fields = ", ".join(list(record)[:8]) or "no field"
        raise ValueError(f"no field '{text_field}' (data.text_field); it has {fields}{nearest(text_field, record)}")
    text = record[text_field]
    if not isinstance(text, str):
        raise ValueError(f"field '{text_field}' is of type {type(text).__name__}; it must be a string")
    if not text.strip():
        raise ValueError(f"field '{text_field}' is empty; remove the line")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"field '{text_field}' holds half a surrogate pair at character {error.start}") from None
    return text


def open_source(config: DataConfig) -> Documents:
    """The documents that `config.source` names.

    A text file is cut at blank lines into documents of at most 16 KiB, a longer paragraph at line ends, a longer line
    between characters; put together again, they are the file. A line of a .jsonl file is a document.

    Raises:
        UserError: nothing is found, a file is of an unknown kind or not UTF-8, or there is no text at all.
    """
    if config.source == "pydoc":
        return TextDocuments(_standard_library_documents())
    files = [_indexed(path, name) for name, path in _files_of(config.source)]
    if not any(file.has_text() for file in files):
        raise UserError(f"data.source: no text in {config.source} ({len(files)} files)")
    return FileDocuments(files, config.text_field)


def _files_of(source: str) -> list[tuple[str, epath.Path]]:
    """(name below the directory named, path) of each file, in the order of the names; hidden files are passed over."""
    path = epath.Path(source).expanduser()
    if path.is_dir():
        files = [(name, file) for name, file in _below(path) if file.suffix.lower() in _SUFFIXES]
        if not files:
            raise UserError(f"data.source: no {', '.join(_SUFFIXES)} file below the directory {source}")
    elif path.exists():
        files = [(path.name, path)]
    elif wildcards := [number for number, part in enumerate(path.parts) if set(part) & set("*?[")]:
        root, pattern = epath.Path(*path.parts[: wildcards[0]]), "/".join(path.parts[wildcards[0] :])
        if "**" in pattern:
            raise UserError(f"data.source: ** is not understood in {source}; name the directory to take all below it")
        files = [(file.relative_to(root).as_posix(), file) for file in root.glob(pattern) if file.is_file()]
        files = [(name, file) for name, file in files if not file.name.startswith(".")]
        if not files:
            raise UserError(f"data.source: nothing matches {source}")
    else:
        raise UserError(f"data.source: no file or directory {source}{nearest(source, ['pydoc'])}")
    for _, file in files:
        if file.suffix.lower() not in _SUFFIXES:
            raise UserError(f"data.source: {file} is of no known kind; use {', '.join(_SUFFIXES)}")
    return sorted(files)


def _below(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _indexed(path: epath.Path, name: str) -> _File:
    """Read a file once, for its hash and the bounds of its documents."""
    digest = hashlib.sha256()
    find = _text_bounds if path.suffix.lower() in _TEXT_SUFFIXES else _line_bounds
    with path.open("rb") as file:
        bounds = array("q", find(file, str(path), digest.update))
    return _File(path, name, np.frombuffer(bounds, np.int64).reshape(-1, 2), digest.hexdigest())


def _line_bounds(file: IO[bytes], _: str, hashed: Callable[[bytes], None]) -> Iterator[int]:
    """First and last bound of each line that is not blank, alternating."""
    position = 0
    for line in file:
        hashed(line)
        skipped = len(_BOM) if position == 0 and line.startswith(_BOM) else 0
        if line[skipped:].strip():
            yield from (position + skipped, position + len(line))
        position += len(line)


def _text_bounds(file: IO[bytes], name: str, hashed: Callable[[bytes], None]) -> Iterator[int]:
    """First and last bound of each document, alternating."""
    position, window = 0, b""
    while True:
        chunk = file.read(_CHUNK_BYTES)
        hashed(chunk)
        if position == 0 and not window and chunk.startswith(_BOM):
            position, chunk = len(_BOM), chunk[len(_BOM) :]
            if not chunk:
                continue
        window, start = window + chunk, 0
        # One byte beyond a full document shows whether it ends between characters.
        while len(window) - start > _DOCUMENT_BYTES or (not chunk and start < len(window)):
            end = start + _document_size(window[start : start + _DOCUMENT_BYTES + 1])
            try:
                window[start:end].decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: not UTF-8 at byte {position + start + error.start}") from None
            yield from (position + start, position + end)
            start = end
        position, window = position + start, window[start:]
        if not chunk:
            return


def _document_size(window: bytes) -> int:
    """Bytes of the document at the start of a window, which is the rest of the file unless it exceeds a document."""
    if len(window) <= _DOCUMENT_BYTES:
        return len(window)
    limit = _DOCUMENT_BYTES
    blank = max((match.end() for match in _BLANK_LINES.finditer(window, 0, limit)), default=0)
    for end in (blank, window.rfind(b"\n", 0, limit) + 1):
        if window[:end].strip():
            return end
    while limit > _DOCUMENT_BYTES - 3 and window[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit


def _standard_library_documents() -> list[str]:
    """Help topics, then the documentation of each module: its own, that of its classes and that of its functions,
    each under its name. Sources are parsed, never imported: an import may open windows or start threads."""
    try:
        from pydoc_data import topics

        documents = [topics.topics[name].strip() for name in sorted(topics.topics)]
    except ImportError:  # some distributions package the topics apart
        documents = []
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are a million objects that a collection walks in vain: half of the time
    try:
        documents += (_module_document(path, root, seen) for path in _standard_library_sources(root))
    finally:
        if collecting:
            gc.enable()
    documents = list(dict.fromkeys(document for document in documents if document))
    if not documents:
        raise UserError(f"data.source: pydoc found no Python sources below {root}; name files of text instead")
    return documents


def _module_document(path: Path, root: Path, seen: set[str]) -> str:
    """The documentation in a source file but for what was `seen` before, to which it is added."""
    parts = path.relative_to(root).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    sections: list[str] = []
    for name, documentation in _documentation(ast.parse(path.read_bytes()), module):
        if documentation not in seen:
            seen.add(documentation)
            sections.append(f"{name}\n\n{documentation}")
    return "\n\n\n".join(sections)


def _standard_library_sources(root: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(root):
        below[:] = sorted(set(below) - _NOT_DOCUMENTATION)
        yield from (Path(directory, name) for name in sorted(names) if name.endswith(".py"))


def _documentation(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of a module or class and of the classes and functions defined in it."""
    if documentation := _docstring(node):
        yield name if isinstance(node, ast.Module) else f"class {name}", documentation
    prefix = "" if isinstance(node, ast.Module) else f"{name}."
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documentation(child, prefix + child.name)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and (documentation := _docstring(child)):
            arguments = (*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs)
            yield f"{prefix}{child.name}({', '.join(argument.arg for argument in arguments)})", documentation


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    documentation = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(documentation).strip() if documentation else ""


def hold_out(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
    """Deal whole documents to (training, validation), in their order. Depends on the number of documents and the
    fraction alone: every run and every host holds out the same.

    Args:
        fraction: Share of the documents to hold out; at least one document is held out and one is not.

    Raises:
        UserError: there are fewer than two documents.
    """
    count = len(documents)
    if count < 2:
        raise UserError(
            f"data.validation_fraction: {fraction} of {count} document leaves one side empty; give at least 2 documents"
        )
    held_out = min(max(1, round(count * fraction)), count - 1)
    # RandomState, unlike numpy's newer generators, promises the same numbers in every version.
    order = np.random.RandomState(_HELD_OUT_SEED).permutation(count)
    training, validation = np.sort(order[held_out:]), np.sort(order[:held_out])
    return (
        SelectedDocuments(documents, training, f"all but {fraction} held out"),
        SelectedDocuments(documents, validation, f"{fraction} held out"),
    )
