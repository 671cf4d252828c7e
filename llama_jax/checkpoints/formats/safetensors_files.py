"""Safetensors files, read and written one tensor at a time, so that memory holds one tensor and not the file.

The header is checked here, before anything is allocated by it, rather than by the `safetensors` library, which accepts
duplicate names and has no bound that suits a LLaMA. Format: https://huggingface.co/docs/safetensors."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.core.errors import UserError
from llama_jax.core.files import replacing
from llama_jax.core.json_files import json_object, shown

TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
"""What a tensor may be called in any file that is read: nothing that a terminal or a path would interpret."""

_LONGEST_HEADER = 10 * 2**20  # the format allows 100 MB; the largest LLaMA takes 0.2 MB
_DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "FIU" for size in (8, 4, 2)},
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class SafetensorsFile:
    """The tensors of one file. Made by `open_safetensors`."""

    path: Path
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    """Shape and type by name."""
    offsets: Mapping[str, int]
    """Where each begins, in bytes from the start of the file."""

    def read(self, name: str) -> np.ndarray:
        """One tensor. Read rather than mapped: pages of a map stay resident as long as it lives."""
        shape, dtype = self.tensors[name]
        count = math.prod(shape)
        with self.path.open("rb") as file:
            array = np.fromfile(file, dtype, count, offset=self.offsets[name])
        if array.size != count:
            raise UserError(f"{self.path}: ends within tensor {name}")
        return array.reshape(shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Check the header of a file; reads no tensor.

    Raises:
        UserError: the header is not what the format asks for, or the file is not as long as it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise UserError(f"{path}: is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise UserError(f"{path}: has {size} bytes, its header alone asks for {8 + length}; cut short?")
        if length > _LONGEST_HEADER:
            raise UserError(f"{path}: has a header of {length} bytes; {_LONGEST_HEADER} are the most that is read")
        header = json_object(file.read(length), f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise UserError(f"{path}: __metadata__ is {shown(metadata)}; an object of strings is expected")
    tensors, spans = {}, []
    for name, entry in header.items():
        shape, dtype, (begin, end) = _entry(path, name, entry)
        tensors[name] = shape, dtype
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise UserError(f"{path}: tensor {name} begins at byte {begin}, the one before it ends at {position}")
        position = end
    if position != size - 8 - length:
        raise UserError(f"{path}: has {size - 8 - length} bytes of tensors, its header asks for {position}; cut short?")
    return SafetensorsFile(path, tensors, {name: 8 + length + begin for begin, _, name in spans})


def _entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], np.dtype, tuple[int, int]]:
    """Shape, type, and first and last byte of a tensor, as its header has them."""
    if not TENSOR_NAME.fullmatch(name):
        raise UserError(f"{path}: {shown(name)} is not the name of a tensor")
    if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}):
        raise UserError(f"{path}: tensor {name} has the header {shown(entry)}; dtype, shape, data_offsets are expected")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise UserError(f"{path}: tensor {name} has type {shown(kind)}, which is not known; BF16, F16, F32 are read")
    if not _are_sizes(shape) or len(shape) > 8:
        raise UserError(f"{path}: tensor {name} has shape {shown(shape)}; a list of sizes is expected")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise UserError(f"{path}: tensor {name} has data_offsets {shown(offsets)}; two byte offsets are expected")
    begin, end = offsets
    dtype = _DTYPES[kind]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: tensor {name} has {end - begin} bytes, {kind} {shown(shape)} asks for another number")
    return tuple(shape), dtype, (begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file; it appears under its name when it is complete and on disk.

    Args:
        tensors: shape and type by name.
        read: called once for each name; gives an array of that shape and type, which is dropped once written.
        metadata: what else the header says; None: what transformers asks for.
    """
    # The widest types first, so that each tensor is aligned.
    names = sorted(tensors, key=lambda name: -tensors[name][1].itemsize)
    header: dict[str, Any] = {"__metadata__": dict({"format": "pt"} if metadata is None else metadata)}
    position = 0
    for name in names:
        shape, dtype = tensors[name]
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(raw_bytes(name, read(name), *tensors[name]))


def raw_bytes(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> memoryview:
    """The bytes of an array that must have this shape and type, in the order of C.

    Raises:
        ValueError: it has another shape or type, so the file would be wrong.
    """
    if (array.shape, array.dtype) != (shape, dtype):
        raise ValueError(f"{name}: {array.dtype}{list(array.shape)} given, {dtype}{list(shape)} announced")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays have the same shape, type and bits."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    # Row by row, so that the comparison itself takes no memory to speak of, and ends at the first that differs.
    rows = zip(np.atleast_1d(first), np.atleast_1d(second), strict=True)
    return all(one.tobytes() == other.tobytes() for one, other in rows)
