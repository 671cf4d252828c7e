"""llama2.c files: read as run.c reads them, and written back byte for byte."""

import struct

import numpy as np
import pytest
from etils import epath

from llama_jax.checkpoints.formats.llama2c import open_llama2c, write_llama2c
from llama_jax.checkpoints.formats.weights import tensors_of
from llama_jax.core.errors import UserError

D, F, L, N, K, V, C = 16, 24, 2, 4, 2, 40, 8
H = D // N
COUNTS = [V * D, L * D, L * D * D, L * K * H * D, L * K * H * D, L * D * D, L * D, L * F * D, L * D * F, L * F * D, D]


def model_file(*, tied: bool) -> bytes:
    """A file written from the description of the format: every float is its own place in the file, over 1000."""
    header = struct.pack("<7i", D, F, L, N, K, V if tied else -V, C)
    count = sum(COUNTS) + C * H + (0 if tied else V * D)
    return header + (np.arange(count, dtype="<f4") / 1000).tobytes()


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_written_back_byte_for_byte(tmp_path, tied) -> None:
    (tmp_path / "model.bin").write_bytes(model_file(tied=tied))
    weights = open_llama2c(tmp_path / "model.bin")
    assert weights.config.tie_embeddings is tied
    write_llama2c(epath.Path(tmp_path / "copy.bin"), weights)
    assert (tmp_path / "copy.bin").read_bytes() == model_file(tied=tied)


def test_tensors_lie_where_run_c_looks_for_them(tmp_path) -> None:
    (tmp_path / "model.bin").write_bytes(model_file(tied=False))
    weights = open_llama2c(tmp_path / "model.bin")
    found = {(name.meta, layer): weights.read(name, layer) for name, layer in tensors_of(weights.config)}
    starts = np.cumsum([0, *COUNTS])
    assert found["tok_embeddings.weight", None][3, 5] == np.float32((3 * D + 5) / 1000)
    # Second layer of wv, [out, in] in the file and [in, out] with us.
    assert found["layers.{}.attention.wv.weight", 1][5, 3] == np.float32((starts[4] + K * H * D + 3 * D + 5) / 1000)
    # Row 1 of a head of wk pairs with row 0, so it stands half a head further with us.
    assert found["layers.{}.attention.wk.weight", 0][7, H // 2] == np.float32((starts[3] + D + 7) / 1000)
    assert found["output.weight", None][5, 3] == np.float32((starts[-1] + C * H + 3 * D + 5) / 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "has 0 bytes, too short"),
        (lambda content: content[:20], "has 20 bytes, too short"),
        (lambda content: content[:-1], "its header asks for"),
        (lambda content: content + b"\0", "its header asks for"),
        (lambda content: struct.pack("<i", 0) + content[4:], "does not describe a llama2.c model"),
        (lambda content: struct.pack("<i", -16) + content[4:], "does not describe a llama2.c model"),
        (lambda content: content[:12] + struct.pack("<i", 3) + content[16:], "does not describe a llama2.c model"),
        (lambda content: content[:8] + struct.pack("<i", 2**31 - 1) + content[12:], "its header asks for"),
        (
            lambda content: content[:28] + np.float32(np.nan).tobytes() + content[32:],
            "tok_embeddings.weight has 1 non-fin",
        ),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, change, message) -> None:
    (tmp_path / "model.bin").write_bytes(change(model_file(tied=True)))
    with pytest.raises(UserError, match=message) as raised:
        weights = open_llama2c(tmp_path / "model.bin")
        for name, layer in tensors_of(weights.config):
            weights.read(name, layer)
    assert "\n" not in str(raised.value)
