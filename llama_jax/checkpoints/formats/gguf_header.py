"""The header of a GGUF file, versions 2 and 3: metadata, and where each tensor is. Made for files that nobody vouches
for: no length is trusted before it is compared with the bytes that are there. Independent of LLaMA.

Format: ggml-org/ggml, docs/gguf.md."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any

import numpy as np
from etils import epath

from llama_jax.core.errors import UserError

Value = int | float | bool | str | list[str] | np.ndarray
"""What a key has. A float32 comes as the shortest decimal that names it, so that 1e-5 is 1e-5."""

LARGEST_HEADER = 64 * 2**20
"""Bytes. Llama 3's, with 128k tokens and 280k merges, has 8 MB; all that is read here stays in memory."""

_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LONGEST_KEY = 65535
_LONGEST_TENSOR_NAME = 64


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """The longest stride first, [out, in], as everywhere but in the file itself."""
    type: Any
    """A `gguf.GGMLQuantizationType`."""
    start: int
    """Of its bytes, from the beginning of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself."""

    values: dict[str, Value]
    tensors: dict[str, TensorInfo]


@dataclass(frozen=True)
class GgufValues:
    """Typed access to the keys of a file; every method raises UserError if the value has another type, or is missing
    without a default."""

    path: str
    values: Mapping[str, Value]

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number, at least 0; one for each layer counts as one when all are equal."""
        value = self._value(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or value < 0:
            raise self._error(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        return float(self._of_type(key, default, (int, float), "a finite number", math.isfinite))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return self._of_type(key, default, (str,), "a string")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self._of_type(key, default, (bool,), "true or false")

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        return self._of_type(key, None, (list,), "a list of strings")

    def numbers(self, key: str, count: int, kind: type[np.number]) -> np.ndarray:
        """`count` finite numbers of a kind: `np.integer` or `np.floating`."""
        value = self._value(key, None)
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, kind) or len(value) != count:
            raise self._error(key, value, f"{count} numbers of kind {kind.__name__}")
        if not np.isfinite(value).all():
            raise self._error(key, value[~np.isfinite(value)], "nothing but finite numbers")
        return value

    def token(self, key: str, count: int) -> int:
        """An id of a vocabulary of `count` tokens."""
        token = self.whole(key)
        if token >= count:
            raise self._error(key, token, f"one of the {count} tokens")
        return token

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def _of_type(
        self, key: str, default: Any, types: tuple[type, ...], expected: str, fits: Callable[[Any], bool] | None = None
    ) -> Any:
        value = self._value(key, default)
        if type(value) not in types or (fits is not None and not fits(value)):
            raise self._error(key, value, expected)
        return value

    def _value(self, key: str, default: Value | None) -> Value:
        value = self.values.get(key, default)
        if value is None:
            raise UserError(f"{self.path}: lacks the key {key}")
        return value

    def _error(self, key: str, value: Value, expected: str) -> UserError:
        shown = " ".join(f"{value!r:.60}".split())
        return UserError(f"{self.path}: {key} is {shown}; expected {expected}")


def gguf_library() -> ModuleType:
    """The package `gguf`, which knows the quantised types.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError("GGUF files need the package gguf: pip install 'llama_jax[gguf]'") from None
    return gguf


def read_gguf_header(path: epath.PathLike) -> GgufHeader:
    """Metadata and places of tensors; reads no tensor.

    Raises:
        UserError: the file is not little-endian GGUF 2 or 3, ends early, repeats a name, or its tensors do not fill it
            one after another, or one has a type that is not known.
    """
    file_path = epath.Path(path)
    if not file_path.is_file():
        raise UserError(f"{path}: no such file; give a .gguf file")
    size = file_path.stat().length
    with file_path.open("rb") as file:
        reader = _Reader(str(path), file, size)
        tensors, keys = _counts(reader)
        values: dict[str, Value] = {}
        for _ in range(keys):
            key = reader.name(_LONGEST_KEY)
            if key in values:
                raise reader.error(f"key {key} comes twice")
            values[key] = reader.value(key)
        infos: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            info = _tensor_info(reader)
            if info.name in infos:
                raise reader.error(f"tensor {info.name} comes twice")
            infos[info.name] = info
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise reader.error(f"general.alignment is {_short(alignment)}, a power of two is expected")
        data = _aligned(reader.position, alignment)
    return GgufHeader(values, _placed(str(path), infos, data, alignment, size))


class _Reader:
    """Takes values off a file in turn, never more than are there."""

    def __init__(self, path: str, file: IO[bytes], size: int) -> None:
        self.path = path
        self.position = 0
        self._file = file
        self._end = min(size, LARGEST_HEADER)

    def error(self, message: str) -> UserError:
        return UserError(f"{self.path}: {message}")

    def check(self, count: int, each: int, what: str) -> None:
        """Refuse `count` things of at least `each` bytes where they cannot be."""
        left = max(0, self._end - self.position)
        if left < count * each:
            where = "the file" if self._end < LARGEST_HEADER else f"the {LARGEST_HEADER} bytes a header may have"
            asked = f"{count * each} bytes" if each == 1 else f"{count} entries"
            raise self.error(f"at byte {self.position} {what} asks for {asked}, {left} bytes are left of {where}")

    def take(self, count: int, what: str) -> bytes:
        self.check(count, 1, what)
        content = self._file.read(count)
        if len(content) != count:
            raise self.error(f"ended at byte {self.position + len(content)} while it was read")
        self.position += count
        return content

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> str:
        try:
            return self.take(self.u64(what), what).decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} has a string that is not UTF-8") from None

    def name(self, longest: int) -> str:
        """Of a key or tensor; printable and short, because it appears in messages."""
        start = self.position
        length = self.u64("a name")
        if not 0 < length <= longest:
            raise self.error(f"at byte {start} a name has {length} bytes, 1 to {longest} are expected")
        content = self.take(length, "a name")
        name = content.decode(errors="replace")
        if name.encode() != content or not name.isprintable():
            raise self.error(f"at byte {start} is not a name of printable UTF-8: {_short(content)}")
        return name

    def value(self, key: str) -> Value:
        kind = self.u32(key)
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            number = self._numbers(kind, 1, key)[0]
            return float(str(number)) if number.dtype == np.float32 else number.item()
        kind, count = self.u32(key), self.u64(key)
        return self._strings(count, key) if kind == _STRING else self._numbers(kind, count, key)

    def _strings(self, count: int, key: str) -> list[str]:
        self.check(count, 8, key)
        read, left = self._file.read, self._end - self.position
        contents: list[bytes] = []
        for _ in range(count):  # hundreds of thousands in a vocabulary, so without calls of our own
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0:
                self.position = self._end - left - length
                self.check(length, 1, key)
            contents.append(read(length))
        self.position = self._end - left
        try:
            return [content.decode() for content in contents]
        except UnicodeDecodeError:
            raise self.error(f"{key} has a string that is not UTF-8") from None

    def _numbers(self, kind: int, count: int, key: str) -> np.ndarray:
        if kind == _BOOL:
            return np.frombuffer(self.take(count, key), np.uint8) != 0
        if kind not in _NUMBERS:  # arrays of arrays too, which llama.cpp does not read either
            raise self.error(f"at byte {self.position} {key} has values of type {kind}, which is not known here")
        number = np.dtype(_NUMBERS[kind])
        self.check(count, number.itemsize, key)
        return np.frombuffer(self.take(count * number.itemsize, key), number)


def _counts(reader: _Reader) -> tuple[int, int]:
    """Numbers of tensors and keys, after magic and version."""
    magic = reader.take(4, "the magic")
    if magic != b"GGUF":
        raise reader.error(f"is not a GGUF file: begins with {magic!r}")
    version = reader.u32("the version")
    if version and version % 65536 == 0:
        raise reader.error("is a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise reader.error(f"has GGUF version {version}, 2 or 3 is expected")
    tensors, keys = reader.u64("the number of tensors"), reader.u64("the number of keys")
    # The least bytes: of a key its length, one letter, its type and a byte; of a tensor one dimension and one letter.
    reader.check(keys, 14, "the number of keys")
    reader.check(tensors, 33, "the number of tensors")
    return tensors, keys


def _tensor_info(reader: _Reader) -> TensorInfo:
    """One entry; `start` still counts from the beginning of the data."""
    name = reader.name(_LONGEST_TENSOR_NAME)
    dimensions = reader.u32(name)
    if not 1 <= dimensions <= 4:
        raise reader.error(f"tensor {name} has {dimensions} dimensions, 1 to 4 are expected")
    shape = tuple(reader.u64(name) for _ in range(dimensions))[::-1]
    if not all(0 < length < 2**63 for length in shape) or math.prod(shape) >= 2**63:
        raise reader.error(f"tensor {name} has the impossible shape {list(shape)}")
    number, start = reader.u32(name), reader.u64(name)
    library = gguf_library()
    try:
        kind = library.GGMLQuantizationType(number)
    except ValueError:
        raise reader.error(f"tensor {name} has type {number}, which is not known here") from None
    block, block_size = library.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise reader.error(f"tensor {name} has rows of {shape[-1]}, {kind.name} goes by {block}")
    return TensorInfo(name, shape, kind, start, math.prod(shape) // block * block_size)


def _placed(path: str, tensors: dict[str, TensorInfo], data: int, alignment: int, size: int) -> dict[str, TensorInfo]:
    """The tensors with `start` counted from the beginning of the file. One follows another, and the last ends with the
    file: were there more bytes, the header would announce fewer tensors than were written, and find each in another's
    place."""
    placed: dict[str, TensorInfo] = {}
    end, before = data, "the header"
    for info in sorted(tensors.values(), key=lambda info: info.start):
        start, expected = data + info.start, _aligned(end, alignment)
        if info.start % alignment:
            raise UserError(f"{path}: tensor {info.name} has offset {info.start}, not a multiple of {alignment}")
        if start + info.size > size:
            raise UserError(f"{path}: tensor {info.name} ends at byte {start + info.size}, the file at {size}")
        if start != expected:
            how = "overlaps" if start < end else "is not where it would follow"
            raise UserError(f"{path}: tensor {info.name} at byte {start} {how} {before}, which ends at {end}")
        placed[info.name] = TensorInfo(info.name, info.shape, info.type, start, info.size)
        end, before = start + info.size, info.name
    if size > _aligned(end, alignment):
        raise UserError(f"{path}: has {size} bytes, but the {len(tensors)} tensors of its header end at {end}")
    return placed


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _short(value: Any) -> str:
    return f"{value!r:.40}"
