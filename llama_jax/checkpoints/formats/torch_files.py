"""Files of `torch.save` that hold named tensors (.bin, .pth, .pt), read and written one tensor at a time.

Such a file is a pickle, which may ask for any code to be run. Torch reads it with `weights_only=True`, which runs none;
nothing here falls back to anything else. Needs the extra `torch`, imported when a file is opened."""

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from llama_jax.checkpoints.formats.safetensors_files import TENSOR_NAME, raw_bytes
from llama_jax.core.errors import UserError
from llama_jax.core.files import replacing
from llama_jax.core.json_files import shown

_MOST_RESIDENT = 64 * 2**20
_LONGEST_PICKLE = 64 * 2**20
_ALIGNMENT = 64
_STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
}


class TorchFile:
    """The tensors of one file, mapped and checked. Files of before torch 1.6, which cannot be mapped, are loaded whole.

    Raises:
        UserError: torch is not installed or too old, the file asks for code to be run, is broken, or holds anything but
            ordinary tensors by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_mapped = _is_zip(path)
        self._loaded = _load(path, mapped=self._is_mapped)
        self._resident = 0
        self.tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]] = {
            name: _described(path, name, value) for name, value in self._loaded.items()
        }
        """Shape and type by name."""

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        if self._is_mapped and self._resident > _MOST_RESIDENT:
            # Pages of a map stay resident as long as it lives.
            self._loaded, self._resident = _load(self.path, mapped=True), 0
        torch, tensor = _torch(self.path), self._loaded[name].detach()
        self._resident += tensor.nbytes
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
        return tensor.numpy().copy()


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        found = "it is not installed" if torch is None else f"{torch.__version__} is installed"
        raise UserError(f"{path}: needs torch 2.6 or later, {found}; pip install 'llama_jax[torch]'")
    return torch


def _is_zip(path: Path) -> bool:
    """Whether this is the format of torch 1.6 and later; if so, also check that nothing grows on reading."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: is not a whole file of torch.save: {shown(str(error))}") from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: entry {shown(entry.filename)} is compressed, which torch.save never does")
        if entry.filename.endswith(".pkl") and entry.file_size > _LONGEST_PICKLE:
            raise UserError(f"{path}: entry {shown(entry.filename)} has {entry.file_size} bytes, too many for names")
    return True


def _load(path: Path, *, mapped: bool) -> dict[Any, Any]:
    torch = _torch(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files raise almost anything
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(f"{path}: asks for {asked[1]}, which weights do not need; nothing of it was run") from None
        reason = shown(str(error).strip().partition("\n")[0])
        raise UserError(f"{path}: is not a file of tensors that torch can read: {reason}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def _described(path: Path, name: Any, value: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an entry, which must be an ordinary tensor."""
    torch = _torch(path)
    if not isinstance(name, str) or not TENSOR_NAME.fullmatch(name):
        raise UserError(f"{path}: {shown(name)} is not the name of a tensor")
    if not isinstance(value, torch.Tensor):
        raise UserError(
            f"{path}: {name} is {type(value).__name__}, not a tensor; a flat dictionary of them is expected"
        )
    kind = str(value.dtype).removeprefix("torch.")
    try:
        dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    except TypeError:
        raise UserError(f"{path}: tensor {name} has type {kind}; bfloat16, float16 or float32 is expected") from None
    is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not is_plain or not value.is_contiguous() or value.is_neg() or value.is_conj():
        raise UserError(f"{path}: tensor {name} is not stored as one plain block (sparse, transposed or the like)")
    return tuple(value.shape), dtype


def write_torch(
    path: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], read: Callable[[str], np.ndarray]
) -> None:
    """Write a file that `torch.load` reads; it appears under its name when it is complete and on disk.

    `torch.save` wants all tensors in memory at once, so the file is put together here: an archive of the pickled names
    and shapes, and of one entry for each tensor.

    Args:
        tensors: shape and type by name.
        read: called once for each name; gives an array of that shape and type, which is dropped once written.

    Raises:
        UserError: torch is not installed.
    """
    torch = _torch(path)
    records = {
        name: _Record(torch._utils._rebuild_tensor_v2, _Storage(getattr(torch, _STORAGES[dtype]), str(key), shape))
        for key, (name, (shape, dtype)) in enumerate(tensors.items())
    }
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(records)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickled.getvalue(), "byteorder": b"little", "version": b"3\n"}.items():
            _add(archive, file, name, content)
        for key, (name, (shape, dtype)) in enumerate(tensors.items()):
            _add(archive, file, f"data/{key}", raw_bytes(name, read(name), shape, dtype))


@dataclass(frozen=True)
class _Storage:
    """The bytes of a tensor, which the pickle only refers to."""

    kind: type
    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Record:
    """A tensor, pickled as the call that rebuilds it."""

    rebuild: Callable[..., Any]
    storage: _Storage

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        shape = self.storage.shape
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return self.rebuild, (self.storage, 0, shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        return "storage", obj.kind, obj.key, "cpu", math.prod(obj.shape)


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, content: bytes | memoryview) -> None:
    """Add an entry, its content aligned in the file so that it can be used where it is mapped."""
    info = zipfile.ZipInfo(f"archive/{name}")
    begin = file.tell() + 30 + len(info.filename) + 20 + 4  # zip's fixed header, the name, zip64 sizes, this padding
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as entry:
        entry.write(content)
