"""Safetensors files: the same as the library's, one tensor in memory, and nothing believed that is not checked."""

import json
import math
import re
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llama_jax.checkpoints.formats.safetensors_files import open_safetensors, write_safetensors
from llama_jax.core.errors import UserError

ARRAYS = {
    "half": np.arange(3, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "nothing": np.zeros((0, 5), np.float16),
    "number": np.array(7.5, np.float64),
}


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    described = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_safetensors(path, described, lambda name: arrays[name])
    return path


def assert_holds(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert found[name].tobytes() == array.tobytes()


def test_what_is_written_is_read_again_bit_by_bit(tmp_path) -> None:
    file = open_safetensors(written(tmp_path / "a", ARRAYS))
    assert_holds({name: file.read(name) for name in file.tensors}, ARRAYS)


def test_the_library_reads_what_is_written(tmp_path) -> None:
    library = pytest.importorskip("safetensors")
    with library.safe_open(written(tmp_path / "a", ARRAYS), framework="numpy") as file:
        assert_holds({name: file.get_tensor(name) for name in file.keys()}, ARRAYS)  # noqa: SIM118 - has no __iter__
        assert file.metadata() == {"format": "pt"}


def test_what_the_library_writes_is_read(tmp_path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    save_file(ARRAYS, tmp_path / "a", {"made": "elsewhere"})
    file = open_safetensors(tmp_path / "a")
    assert_holds({name: file.read(name) for name in file.tensors}, ARRAYS)


def test_every_tensor_begins_at_a_multiple_of_its_size(tmp_path) -> None:
    file = open_safetensors(written(tmp_path / "a", ARRAYS))
    assert all(offset % file.tensors[name][1].itemsize == 0 for name, offset in file.offsets.items())


def test_reading_and_writing_hold_one_tensor(tmp_path) -> None:
    size = 2**20
    described = {f"tensor{number}": ((size // 4,), np.dtype(np.float32)) for number in range(8)}
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "a", described, lambda name: np.full(size // 4, int(name[-1]), np.float32))
        file = open_safetensors(tmp_path / "a")
        assert [file.read(name)[0] for name in described] == list(range(8))
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


def test_a_file_that_could_not_be_finished_does_not_appear(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"matrix: float64\[2\] given, float32\[3, 4\] announced"):
        write_safetensors(tmp_path / "a", {"matrix": ((3, 4), np.dtype(np.float32))}, lambda name: np.zeros(2))
    assert not (tmp_path / "a").exists()


def test_types_that_are_no_weights_are_listed_so_that_they_can_be_refused_by_name(tmp_path) -> None:
    (tmp_path / "a").write_bytes(file_of({"q": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"ab"))
    assert str(open_safetensors(tmp_path / "a").tensors["q"][1]) == "float8_e4m3fn"


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: object) -> bytes:
    return file_of({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}, bytes(16))


def pair(first: list[int], second: list[int], data: int = 8) -> bytes:
    tensors = {name: {"dtype": "U8", "shape": [4], "data_offsets": at} for name, at in (("a", first), ("b", second))}
    return file_of(tensors, bytes(data))


def named(name: str) -> bytes:
    return file_of({name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes, its header alone asks for"),
    "shorter than its length": (b"\1\0", "has 2 bytes, its header alone asks for"),
    "header of 2^64 bytes": (b"\xff" * 8 + b"{}", "its header alone asks for 18446744073709551623"),
    "header of 99 MB in a short file": ((99_000_000).to_bytes(8, "little") + b"{}", "alone asks for 99000008"),
    "long header": (file_of(b"{}" + b" " * 10 * 2**20), "has a header of 10485762 bytes"),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "no JSON": (file_of(b"{'a': 1}"), "header: is not JSON"),
    "no object": (file_of([1]), r"header: holds \[1\] where a JSON object is expected"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "header: is not UTF-8 at byte 2"),
    "nested deeply": (file_of(b"[" * 200_000), "header: is JSON nested too deeply"),
    "NaN": (file_of(b'{"a": NaN}'), "header: has the value NaN"),
    "number of 5000 digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "header: Exceeds the limit"),
    "duplicate tensor": (file_of(b'{"a": 1, "a": 2}'), "header: has the key 'a' twice"),
    "duplicate field": (file_of(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "header: has the key 'dtype' twice"),
    "metadata that is no object": (file_of({"__metadata__": [1]}), r"__metadata__ is \[1\]"),
    "metadata that is no text": (file_of({"__metadata__": {"a": 1}}), "__metadata__ is {'a': 1}"),
    "name with an end of line": (named("a\nb"), r"'a\\nb' is not the name of a tensor"),
    "name with an escape": (named("\x1b[2J"), r"'\\x1b\[2J' is not the name"),
    "empty name": (named(""), "'' is not the name"),
    "endless name": (named("a" * 10_000), "'a{50,60} is not the name"),
    "half a surrogate pair": (file_of(b'{"\\ud800": 1}'), r"'\\ud800' is not the name"),
    "tensor that is no object": (file_of({"a": 3}), "tensor a has the header 3"),
    "field missing": (file_of({"a": {"dtype": "F32", "shape": []}}), "tensor a has the header"),
    "field too many": (entry(extra=1), "tensor a has the header"),
    "unknown type": (entry(dtype="F4"), "tensor a has type 'F4', which is not known"),
    "type that is a list": (entry(dtype=["F32"]), r"tensor a has type \['F32'\]"),
    "negative size": (entry(shape=[-2, -2]), r"tensor a has shape \[-2, -2\]"),
    "size that is true": (entry(shape=[True, 4]), r"tensor a has shape \[True, 4\]"),
    "size with a fraction": (entry(shape=[2.0, 2]), r"tensor a has shape \[2.0, 2\]"),
    "shape that is text": (entry(shape="22"), "tensor a has shape '22'"),
    "product beyond 2^64": (entry(shape=[2**40, 2**40]), "tensor a has 16 bytes, F32"),
    "nine axes": (entry(shape=[1] * 7 + [2, 2]), "tensor a has shape"),
    "shape that asks for more": (entry(shape=[2, 3]), "tensor a has 16 bytes, F32"),
    "three offsets": (entry(data_offsets=[0, 8, 16]), r"tensor a has data_offsets \[0, 8, 16\]"),
    "offsets backwards": (entry(data_offsets=[16, 0]), "tensor a has -16 bytes"),
    "offset before the data": (entry(data_offsets=[-8, 8]), r"tensor a has data_offsets \[-8, 8\]"),
    "offsets beyond the file": (entry(shape=[4, 4], data_offsets=[0, 64]), "has 16 bytes of tensors, its header asks"),
    "overlap": (pair([0, 4], [2, 6]), "tensor b begins at byte 2, the one before it ends at 4"),
    "the same bytes twice": (pair([0, 4], [0, 4], 4), "tensor b begins at byte 0, the one before it ends at 4"),
    "hole": (pair([0, 4], [6, 10], 10), "tensor b begins at byte 6"),
    "hole at the start": (pair([1, 5], [5, 9], 9), "tensor a begins at byte 1"),
    "bytes left over": (pair([0, 4], [4, 8], 9), "has 9 bytes of tensors, its header asks for 8"),
    "cut short": (pair([0, 4], [4, 8], 7), "has 7 bytes of tensors, its header asks for 8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_file_is_refused_in_one_line(tmp_path, case) -> None:
    content, message = HOSTILE[case]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        open_safetensors(tmp_path / "a")
    assert str(raised.value).startswith(f"{tmp_path}/a: ")
    assert re.fullmatch(r"[ -~]{1,400}", str(raised.value))


def test_a_file_cut_short_after_it_was_opened_is_refused(tmp_path) -> None:
    path = written(tmp_path / "a", ARRAYS)
    file = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="ends within tensor half"):
        file.read("half")


def test_no_single_byte_of_a_header_can_be_changed_into_a_crash(tmp_path) -> None:
    good = written(tmp_path / "good", ARRAYS).read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    draw = np.random.default_rng(0)
    refused = 0
    for place in range(header):
        changed = bytearray(good)
        changed[place] = int(draw.integers(256))
        (tmp_path / "a").write_bytes(changed)
        try:
            file = open_safetensors(tmp_path / "a")
        except UserError:
            refused += 1
            continue
        assert sum(math.prod(shape) * dtype.itemsize for shape, dtype in file.tensors.values()) == len(good) - header
    assert refused > header / 2
