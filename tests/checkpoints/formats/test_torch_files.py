"""Files of torch.save: the same tensors both ways, one in memory, and no code run that a file asks for."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llama_jax.checkpoints.formats import torch_files
from llama_jax.checkpoints.formats.torch_files import TorchFile, write_torch
from llama_jax.core.errors import UserError

torch = pytest.importorskip("torch", "2.6")

ARRAYS = {
    "layers.0.w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "bfloat": np.arange(5, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "half": np.arange(4, dtype=np.float16).reshape(1, 4, 1),
    "double": np.array(7.5, np.float64),
    "nothing": np.zeros((0, 5), np.float32),
}
TENSORS = {
    "layers.0.w": torch.arange(12.0).reshape(3, 4),
    "bfloat": torch.arange(5.0).bfloat16(),
    "half": torch.arange(4.0).half().reshape(1, 4, 1),
    "double": torch.tensor(7.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 5),
}


def written(path: Path) -> Path:
    write_torch(path, {name: (array.shape, array.dtype) for name, array in ARRAYS.items()}, lambda name: ARRAYS[name])
    return path


def assert_read(path: Path) -> None:
    file = TorchFile(path)
    assert file.tensors == {name: (array.shape, array.dtype) for name, array in ARRAYS.items()}
    for name, array in ARRAYS.items():
        assert file.read(name).tobytes() == array.tobytes()


@pytest.mark.parametrize("mapped", [True, False])
def test_torch_reads_what_is_written(tmp_path, mapped) -> None:
    loaded = torch.load(written(tmp_path / "a.pth"), weights_only=True, mmap=mapped)
    assert list(loaded) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert (loaded[name].shape, loaded[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].data_ptr() % 64 == 0 or not mapped


def test_what_is_written_is_a_whole_archive(tmp_path) -> None:
    """Torch does not look at the check sums, other readers of the format do."""
    assert zipfile.ZipFile(written(tmp_path / "a.pth")).testzip() is None


def test_what_is_written_is_read_again_bit_by_bit(tmp_path) -> None:
    assert_read(written(tmp_path / "a.pth"))


@pytest.mark.parametrize("archived", [True, False])
def test_what_torch_writes_is_read(tmp_path, archived) -> None:
    torch.save(OrderedDict(TENSORS), tmp_path / "a.pth", _use_new_zipfile_serialization=archived)
    assert_read(tmp_path / "a.pth")


def test_views_of_one_storage_and_parameters_are_read(tmp_path) -> None:
    table = torch.arange(12.0).reshape(6, 2)
    torch.save({"a": table[2:4], "b": torch.nn.Parameter(table)}, tmp_path / "a.pth")
    file = TorchFile(tmp_path / "a.pth")
    assert file.read("a").tolist() == [[4, 5], [6, 7]]
    assert file.read("b").shape == (6, 2)


def test_the_map_is_given_back_so_that_memory_does_not_grow_with_the_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch_files, "_MOST_RESIDENT", 2**22)
    size = 2**20
    described = {f"tensor{number}": ((size // 4,), np.dtype(np.float32)) for number in range(64)}
    write_torch(tmp_path / "a.pth", described, lambda name: np.full(size // 4, 1, np.float32))
    file = TorchFile(tmp_path / "a.pth")
    before = resident_bytes()
    assert sum(file.read(name)[0] for name in described) == 64
    assert resident_bytes() - before < 16 * size


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_files_need_torch_and_say_how_to_get_it(tmp_path, monkeypatch) -> None:
    written(tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UserError, match=r"a\.pth: needs torch 2\.6 or later, 2\.5\.1\+cpu is installed; pip install"):
        TorchFile(tmp_path / "a.pth")


class Canary:
    """What a hostile pickle holds: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def saved(content: object, **how: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **entries}.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def tensor_pickle(shape: tuple[int, ...], strides: tuple[int, ...], stored: int) -> bytes:
    """The pickle of one tensor that claims a shape whatever `stored`, the number of stored floats, is."""
    buffer = io.BytesIO()
    storage = torch_files._Storage(torch.FloatStorage, "0", (stored,))

    class Record:
        def __reduce__(self) -> tuple:
            return torch._utils._rebuild_tensor_v2, (storage, 0, shape, strides, False, OrderedDict())

    torch_files._Pickler(buffer, protocol=2).dump({"a": Record()})
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "code in the archive": (lambda canary: saved({"a": Canary(canary)}), "asks for (posix|os)[.]system, which weights"),
    "code in the old format": (
        lambda canary: saved({"a": Canary(canary)}, _use_new_zipfile_serialization=False),
        "asks for (posix|os)[.]system, which weights",
    ),
    "code in a bare pickle": (lambda canary: pickle.dumps(Canary(canary)), "is not a file of tensors|asks for"),
    "code by the old protocol": (lambda canary: pickle.dumps(Canary(canary), 0), "is not a file of tensors|asks for"),
    "a function called with hostile arguments": (
        lambda canary: archive(b"cbuiltins\neval\n(S'1'\ntR."),
        "asks for (builtins.)?eval, which weights",
    ),
    "a module": (lambda canary: saved(torch.nn.Linear(1, 1)), "asks for torch.nn.modules.linear.Linear"),
    "a TorchScript program": (lambda canary: scripted(), "code/__torch__/torch/nn/modules/linear.py' is compressed"),
    "empty": (lambda canary: b"", "is not a file of tensors that torch can read"),
    "text": (lambda canary: b"version https://git-lfs.github.com/spec/v1\n", "is not a file of tensors"),
    "cut short": (lambda canary: saved(TENSORS)[:-100], "is not a whole file of torch.save"),
    "first half": (lambda canary: saved(TENSORS)[:600], "is not a whole file of torch.save"),
    "compressed": (lambda canary: archive(b"}.", zipfile.ZIP_DEFLATED), "is compressed, which torch.save never does"),
    "a compression bomb": (
        lambda canary: archive(bytes(2**26), zipfile.ZIP_DEFLATED),
        "is compressed, which torch.save never does",
    ),
    "an endless pickle": (lambda canary: archive(bytes(2**26 + 1)), "has 67108865 bytes, too many for names"),
    "no pickle": (lambda canary: archive(b"}.").replace(b"data.pkl", b"data.pkx"), "is not a file of tensors"),
    "a pickle that is none": (lambda canary: archive(b"\xff\xfe"), "is not a file of tensors"),
    "a pickle of nothing": (lambda canary: archive(b""), "is not a file of tensors"),
    "a storage that is missing": (lambda canary: archive(tensor_pickle((2,), (1,), 2)), "is not a file of tensors"),
    "more elements than stored": (
        lambda canary: archive(tensor_pickle((2**40,), (1,), 2), **{"data/0": bytes(8)}),
        "is not a file of tensors",
    ),
    "a storage longer than its entry": (
        lambda canary: archive(tensor_pickle((2**34,), (1,), 2**34), **{"data/0": bytes(8)}),
        "is not a file of tensors",
    ),
    "negative size": (
        lambda canary: archive(tensor_pickle((-2,), (1,), 2), **{"data/0": bytes(8)}),
        "is not a file of tensors",
    ),
    "a list": (lambda canary: saved([torch.zeros(1)]), "holds list, not a dictionary of tensors"),
    "one tensor": (lambda canary: saved(torch.zeros(1)), "holds Tensor, not a dictionary of tensors"),
    "a dictionary within": (lambda canary: saved({"model": TENSORS}), "model is dict, not a tensor; a flat dict"),
    "a number": (lambda canary: saved({"a": torch.zeros(1), "step": 3}), "step is int, not a tensor"),
    "a key that is a number": (lambda canary: saved({3: torch.zeros(1)}), "3 is not the name of a tensor"),
    "a key of two lines": (lambda canary: saved({"a\nb": torch.zeros(1)}), r"'a\\nb' is not the name of a tensor"),
    "sparse": (lambda canary: saved({"a": torch.eye(3).to_sparse()}), "tensor a is not stored as one plain block"),
    "sparse rows": (lambda canary: saved({"a": torch.eye(3).to_sparse_csr()}), "a is not stored as one plain block"),
    "transposed": (lambda canary: saved({"a": torch.zeros(2, 3).T}), "tensor a is not stored as one plain block"),
    "one element repeated": (
        lambda canary: saved({"a": torch.zeros(1).expand(2**40)}),
        "tensor a is not stored as one plain block",
    ),
    "quantised": (
        lambda canary: saved({"a": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}),
        "tensor a has type qint8; bfloat16, float16 or float32 is expected|asks for",
    ),
    "without content": (lambda canary: saved({"a": torch.zeros(3, device="meta")}), "a is not stored as one plain"),
    "conjugated": (lambda canary: saved({"a": torch.zeros(3, dtype=torch.complex64).conj()}), "a is not stored as one"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_file_is_refused_in_one_line_and_runs_nothing(tmp_path, case) -> None:
    make, message = HOSTILE[case]
    (tmp_path / "a.pth").write_bytes(make(tmp_path / "canary"))
    with pytest.raises(UserError, match=message) as raised:
        TorchFile(tmp_path / "a.pth")
    assert str(raised.value).startswith(f"{tmp_path}/a.pth: ")
    assert re.fullmatch(r"[ -~]{1,400}", str(raised.value))
    assert not (tmp_path / "canary").exists()


def test_the_canary_sings_where_code_is_run(tmp_path) -> None:
    """So that its silence above means something."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
