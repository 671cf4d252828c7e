"""Headers of GGUF are read exactly; a hostile one is refused in one line, at once, without memory for its claims."""

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_jax.checkpoints.formats.gguf_header import read_gguf_header
from llama_jax.core.errors import UserError

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def array(kind: int, count: int, content: bytes) -> bytes:
    return u32(kind) + u64(count) + content


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def whole_file(
    keys: list[bytes] | None = None, tensors: list[bytes] | None = None, data: bytes = bytes(64), version: int = 3
) -> bytes:
    keys, tensors = keys or [], tensors or []
    header = b"GGUF" + u32(version) + u64(len(tensors)) + u64(len(keys)) + b"".join(keys + tensors)
    return header + bytes(-len(header) % 32) + data


KEYS = [
    key("general.architecture", STRING, string("llama")),
    key("a.count", U32, u32(7)),
    key("a.epsilon", F32, struct.pack("<f", 1e-5)),
    key("a.flag", BOOL, b"\1"),
    key("a.words", ARRAY, array(STRING, 2, string("Ġ t") + string(""))),
    key("a.numbers", ARRAY, array(F32, 3, struct.pack("<3f", 1, 2, 3))),
]
GOOD = whole_file(KEYS, [tensor("one", [4, 2]), tensor("two", [32, 1], 8, 32)], bytes(66))


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_is_read_as_it_was_written(tmp_path: Path, version: int) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD[:4] + u32(version) + GOOD[8:])
    header = read_gguf_header(path)
    numbers = header.values.pop("a.numbers")
    assert isinstance(numbers, np.ndarray) and numbers.tolist() == [1.0, 2.0, 3.0]
    assert header.values == {
        "general.architecture": "llama",
        "a.count": 7,
        "a.epsilon": 1e-5,  # float32(1e-5) is 9.99999975e-06; the file's author wrote 1e-5
        "a.flag": True,
        "a.words": ["Ġ t", ""],
    }
    one, two = header.tensors["one"], header.tensors["two"]
    assert (one.shape, one.type.name, one.size) == ((2, 4), "F32", 32)
    assert (two.shape, two.type.name, two.size) == ((1, 32), "Q8_0", 34)
    assert (one.start, two.start) == (len(GOOD) - 66, len(GOOD) - 34)


def test_the_library_writes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "library.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_types([1, 2, 3])
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.float16)}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(path)
    assert header.values["general.alignment"] == 64
    content = path.read_bytes()
    for name, value in values.items():
        info = header.tensors[name]
        assert info.shape == value.shape and info.start % 64 == 0
        assert content[info.start : info.start + info.size] == value.tobytes()


def test_the_last_tensor_may_end_with_the_file_or_be_padded(tmp_path: Path) -> None:
    for end in (len(GOOD), len(GOOD) + 30):
        (tmp_path / "model.gguf").write_bytes(GOOD.ljust(end, b"\0"))
        assert read_gguf_header(tmp_path / "model.gguf").tensors.keys() == {"one", "two"}


def with_tensors(*tensors: bytes, data: bytes = bytes(64)) -> bytes:
    return whole_file([], list(tensors), data)


def with_key(kind: int, value: bytes) -> bytes:
    return whole_file([key("k", kind, value)])


HUGE = 2**63
HOSTILE = {
    "empty": (b"", "at byte 0 the magic asks for 4 bytes, 0"),
    "bad magic": (b"GGML" + GOOD[4:], "is not a GGUF file: begins with b'GGML'"),
    "a pickle": (b"\x80\x04\x95" + GOOD, "is not a GGUF file"),
    "version 0": (GOOD[:4] + u32(0) + GOOD[8:], "has GGUF version 0"),
    "version 1": (GOOD[:4] + u32(1) + GOOD[8:], "has GGUF version 1"),
    "version 99": (GOOD[:4] + u32(99) + GOOD[8:], "has GGUF version 99, 2 or 3 is expected"),
    "big-endian": (GOOD[:4] + struct.pack(">I", 3) + GOOD[8:], "is a big-endian GGUF file"),
    "2^63 tensors": (GOOD[:8] + u64(HUGE) + GOOD[16:], "number of tensors asks for 9223372036854775808 entries"),
    "2^64-1 keys": (GOOD[:16] + u64(2 * HUGE - 1) + GOOD[24:], "number of keys asks for 18446744073709551615 entries"),
    "one key too many": (whole_file()[:16] + u64(1) + whole_file()[24:], "a name has 0 bytes"),
    "name of 2^64-1 bytes": (GOOD[:24] + u64(2 * HUGE - 1) + GOOD[32:], "a name has 18446744073709551615 bytes"),
    "long name": (whole_file([key("k" * 65536, U8, b"\1")]), "a name has 65536 bytes, 1 to 65535 are expected"),
    "name not UTF-8": (whole_file([key(b"\xff\xfe", U8, b"\1")]), "is not a name of printable UTF-8"),
    "name with a new line": (whole_file([key("a\nb", U8, b"\1")]), "is not a name of printable UTF-8"),
    "key twice": (whole_file([KEYS[1], KEYS[1]]), "key a.count comes twice"),
    "string of 2^64-1 bytes": (with_key(STRING, u64(2 * HUGE - 1)), "k asks for 18446744073709551615 bytes"),
    "string longer than the file": (with_key(STRING, u64(1000) + b"a"), "k asks for 1000 bytes"),
    "string not UTF-8": (with_key(STRING, string(b"\xc3")), "k has a string that is not UTF-8"),
    "unknown type of value": (with_key(13, u32(1)), "k has values of type 13"),
    "array of 2^61 numbers": (with_key(ARRAY, array(U64, 2**61, b"")), "k asks for 2305843009213693952 entries"),
    "array of 2^63 strings": (with_key(ARRAY, array(STRING, HUGE, b"")), "k asks for 9223372036854775808 entries"),
    "strings that end early": (
        with_key(ARRAY, array(STRING, 3, string("a") + u64(2**40) + b"b" * 40)),
        "k asks for 1099511627776 bytes",
    ),
    "strings not UTF-8": (with_key(ARRAY, array(STRING, 1, string(b"\xff"))), "k has a string that is not UTF-8"),
    "array of arrays": (with_key(ARRAY, array(ARRAY, 1, array(ARRAY, 1, b"") * 9000)), "k has values of type 9"),
    "alignment 0": (whole_file([key("general.alignment", U32, u32(0))]), "general.alignment is 0, a power of two"),
    "alignment 3": (whole_file([key("general.alignment", U32, u32(3))]), "general.alignment is 3, a power of two"),
    "alignment a string": (whole_file([key("general.alignment", STRING, string("32"))]), "general.alignment is '32'"),
    "alignment 2^31": (
        whole_file([key("general.alignment", U32, u32(2**31))], [tensor("t", [1])]),
        "tensor t ends at byte 2147483652, the file at",
    ),
    "no dimension": (with_tensors(tensor("t", [])), "tensor t has 0 dimensions"),
    "5 dimensions": (with_tensors(tensor("t", [1] * 5)), "tensor t has 5 dimensions, 1 to 4"),
    "2^32-1 dimensions": (with_tensors(string("t") + u32(2**32 - 1) + bytes(32)), "tensor t has 4294967295 dimensions"),
    "dimension 0": (with_tensors(tensor("t", [0, 4])), "tensor t has the impossible shape [4, 0]"),
    "product 2^64": (with_tensors(tensor("t", [2**32, 2**32])), "tensor t has the impossible shape"),
    "product that wraps to 8": (with_tensors(tensor("t", [2**62 + 2, 4])), "tensor t has the impossible shape"),
    "unknown type": (with_tensors(tensor("t", [4], 4)), "tensor t has type 4, which is not known"),
    "type 2^32-1": (with_tensors(tensor("t", [4], 2**32 - 1)), "tensor t has type 4294967295"),
    "part of a block": (with_tensors(tensor("t", [33], 8)), "tensor t has rows of 33, Q8_0 goes by 32"),
    "beyond the end": (with_tensors(tensor("t", [4], 0, 96)), "tensor t ends at byte"),
    "offset 2^64-32": (with_tensors(tensor("t", [4], 0, 2 * HUGE - 32)), "tensor t ends at byte 18446744073709551"),
    "size beyond the end": (with_tensors(tensor("t", [17])), "tensor t ends at byte"),
    "offset 4": (with_tensors(tensor("t", [4], 0, 4)), "tensor t has offset 4, not a multiple of 32"),
    "overlap": (with_tensors(tensor("t", [9]), tensor("u", [4], 0, 32)), "tensor u at byte 128 overlaps t"),
    "same place": (with_tensors(tensor("t", [4]), tensor("u", [4])), "overlaps t"),
    "a gap": (with_tensors(tensor("t", [4]), tensor("u", [4], 0, 64), data=bytes(80)), "u at byte 160 is not where it"),
    "a gap before all": (with_tensors(tensor("t", [4], 0, 32)), "is not where it would follow the header, which ends"),
    "bytes after all": (with_tensors(tensor("t", [4])), "but the 1 tensors of its header end at"),
    "bytes and no tensors": (whole_file(KEYS), "but the 0 tensors of its header end at"),
    "a tensor fewer": (GOOD[:8] + u64(1) + GOOD[16:], "but the 1 tensors of its header end at"),
    "a tensor more": (GOOD[:8] + u64(3) + GOOD[16:], "a name has 0 bytes"),
    "a key fewer": (GOOD[:16] + u64(len(KEYS) - 1) + GOOD[24:], "tensor a.numbers has 9 dimensions"),
    "a key more": (GOOD[:16] + u64(len(KEYS) + 1) + GOOD[24:], "a name has 562949953421312 bytes"),
    "tensor twice": (with_tensors(tensor("t", [4]), tensor("t", [4], 0, 32)), "tensor t comes twice"),
    "long tensor name": (with_tensors(tensor("t" * 65, [4])), "a name has 65 bytes, 1 to 64"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_in_one_line_quickly_and_without_memory(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(UserError) as error:
        read_gguf_header(path)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert seconds < 1 and peak < 2**20


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for end in range(len(GOOD)):
        path.write_bytes(GOOD[:end])
        with pytest.raises(UserError, match=r"cut\.gguf: "):
            read_gguf_header(path)


def test_a_flipped_bit_is_refused_or_read_but_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "flipped.gguf"
    refused = 0
    for place in range(len(GOOD) - 66):
        content = bytearray(GOOD)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            read_gguf_header(path)
        except UserError:
            refused += 1
    assert refused > 100


def test_a_header_may_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse file of a terabyte costs nothing to make; strings that it would hold are not read."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(with_key(ARRAY, array(U8, 2**39, b"")))
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"549755813888 bytes, .* of the 67108864 bytes a header may have"):
        read_gguf_header(path)


def test_half_a_million_strings_are_read_in_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "merges.gguf"
    count = 400_000
    path.write_bytes(whole_file([key("k", ARRAY, array(STRING, count, string("Ġa Ġb") * count))], data=b""))
    started = time.process_time()
    merges = read_gguf_header(path).values["k"]
    seconds = time.process_time() - started
    assert merges == ["Ġa Ġb"] * count and seconds < 3


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None], ids=["directory", "nothing"])
def test_what_is_no_file_is_refused(tmp_path: Path, make) -> None:
    make(tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"no such file; give a \.gguf file"):
        read_gguf_header(tmp_path / "model.gguf")
