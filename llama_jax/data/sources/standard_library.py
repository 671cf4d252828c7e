"""The documentation of Python's standard library, a corpus that is present on every machine."""

import ast
import gc
import inspect
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llama_jax.core.errors import UserError

_NOT_DOCUMENTATION = {
    *("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"),
    *("ensurepip", "__pycache__"),
    "encodings",  # a hundred modules whose documentation differs in one name: near-copies on both sides of a hold-out
}


def standard_library_documents() -> list[str]:
    """Help topics, then the documentation of each module: its own, that of its classes and that of its functions,
    each under its name. Sources are parsed, never imported: an import may open windows or start threads."""
    try:
        from pydoc_data import topics

        documents = [topics.topics[name].strip() for name in sorted(topics.topics)]
    except ImportError:  # some distributions package the topics separately
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
