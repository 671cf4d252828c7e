"""An adapter knows its base again wherever and however that is stored, and no other."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from small_weights import BFLOAT16, FLOAT32, SMALL, SmallWeights, of_kind
from sweeps import some

from llama_jax.checkpoints.adapters.adapter import BaseIdentity, check_base, identity_of
from llama_jax.checkpoints.formats.gguf import write_gguf
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.orbax import open_orbax, write_orbax
from llama_jax.checkpoints.formats.weights import WeightName
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig


def identity(path: Path, store: Any = "float32", devices: int = 1) -> BaseIdentity:
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return open_params(ModelReference(str(path)), ComputeConfig(), say=pytest.fail, store=store).identity


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """The same model in four forms, one of them rounded to bfloat16."""
    folder = tmp_path_factory.mktemp("bases")
    paths = {name: folder / name for name in ("hf", "run", "model.gguf", "bfloat16")}
    paths["hf"].mkdir()
    paths["bfloat16"].mkdir()
    write_hugging_face(paths["hf"], of_kind(FLOAT32))
    write_hugging_face(paths["bfloat16"], of_kind(FLOAT32), dtype=BFLOAT16)
    write_orbax(epath.Path(paths["run"]), of_kind(FLOAT32), dtype=None)
    write_gguf(paths["model.gguf"], of_kind(FLOAT32))
    return paths


def test_the_same_weights_are_the_same_base_in_any_format_and_on_any_mesh(bases) -> None:
    expected = identity(bases["hf"])
    for name in ("hf", "run", "model.gguf"):
        for devices in (1, 8):
            found = identity(bases[name], devices=devices)
            assert found.source == expected.source and found.stored == expected.stored, (name, devices)
            assert found.fingerprint == expected.fingerprint
    assert identity_of(of_kind(FLOAT32), "memory", None).source == expected.source
    assert identity_of(open_orbax(epath.Path(bases["run"]), step=None, say=print), "run", 0).source == expected.source
    assert identity(bases["run"]).step == 0 and identity(bases["hf"]).step is None
    assert identity(bases["hf"]).name == str(bases["hf"])


@pytest.mark.parametrize("store", some(["float32", "bfloat16", "int8", "nf4"], ["bfloat16"]))
def test_what_is_stored_has_the_fingerprints_of_the_parameters(bases, store) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        opened = open_params(ModelReference(str(bases["hf"])), ComputeConfig(), say=pytest.fail, store=store)
    words = jax.device_get(tree.flatten(tree.fingerprints(opened.params)))
    found = {path: (leaf.fingerprint, leaf.shape, leaf.dtype) for path, leaf in opened.identity.stored.items()}
    leaves = tree.flatten(opened.params)
    assert found == {path: (tuple(words[path]), leaf.shape, str(leaf.dtype)) for path, leaf in leaves.items()}
    assert opened.identity.source == identity(bases["hf"]).source


@pytest.mark.parametrize(
    ("trained", "store", "used"),
    [
        ("hf", "float32", "run"),
        ("hf", "nf4", "model.gguf"),  # 4 bits made from the same float32
        # stored again in the type it was trained in
        pytest.param("hf", "bfloat16", "bfloat16", marks=pytest.mark.slow),
        ("bfloat16", "nf4", "bfloat16"),
        ("bfloat16", "bfloat16", "hf"),  # the float32 it was rounded from, read as bfloat16
    ],
)
def test_a_base_is_known_again(bases, trained, store, used) -> None:
    # The last is the same only as it is stored; the others by what is on disk.
    again = "bfloat16" if (trained, used) == ("bfloat16", "hf") else "float32"
    check_base(identity(bases[trained], store), identity(bases[used], again), "adapter")


@dataclasses.dataclass(frozen=True)
class Changed(SmallWeights):
    """One number of one layer differs in its last bit."""

    where: str = ""

    def read(self, name: WeightName, layer: int | None) -> np.ndarray:
        tensor = super().read(name, layer)
        if name.ours == self.where and layer in (None, 1):
            tensor.flat[3] = np.nextafter(tensor.flat[3], np.float32(9))
        return tensor


@pytest.mark.parametrize(
    "where",
    some(["embedding/table", "layers/mlp/down_proj/kernel", "layers/mlp_norm/scale"], ["layers/mlp/down_proj/kernel"]),
)
def test_another_base_is_refused_with_the_weight_that_differs(bases, where) -> None:
    other = identity_of(Changed(where=where), "other", None)
    for store in ("float32", "nf4"):
        with pytest.raises(UserError, match=f"^adapter: belongs to a base other than other: {where} has other values"):
            check_base(identity(bases["hf"], store), other, "adapter")
    with pytest.raises(UserError, match="embedding/table has other values"):  # as 32 bits of it never were trained on
        check_base(identity(bases["bfloat16"]), identity(bases["hf"]), "adapter")


def test_another_architecture_is_refused_with_the_setting_that_differs(bases) -> None:
    other = identity_of(SmallWeights(dataclasses.replace(SMALL, rope_base=500000.0)), "other", None)
    with pytest.raises(UserError, match=r"rope_base is 500000.0 there, 10000.0 in the base it was trained on"):
        check_base(identity(bases["hf"]), other, "adapter")


def test_an_identity_survives_its_file(bases) -> None:
    expected = identity(bases["run"], "nf4")
    assert BaseIdentity.from_json(expected.to_json(), "base.json") == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"source": None},
        {"source": {"a": 1}},
        {"source": {"a": {"shape": [1], "dtype": "float32"}}},
        {"name": 1},
        {"step": "x"},
        {"stored": {"a": {"shape": ["x"], "dtype": "float32", "fingerprint": [1, 2]}}},
    ],
)
def test_a_file_that_is_no_identity_is_refused_in_one_line(bases, changes) -> None:
    values = json.loads(identity(bases["hf"]).to_json()) | changes
    with pytest.raises(UserError, match=r"^base.json: does not describe the base of an adapter") as caught:
        BaseIdentity.from_json(json.dumps(values).encode(), "base.json")
    assert "\n" not in str(caught.value)
