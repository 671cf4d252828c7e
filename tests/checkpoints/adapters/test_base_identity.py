"""An adapter knows its base again wherever and however that is stored, and no other."""

import dataclasses
import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_runs import random_adapter, save_adapter_run
from etils import epath
from small_weights import BFLOAT16, FLOAT32, SMALL, SmallWeights, of_kind
from sweeps import some

from llama_jax.checkpoints.adapters.adapter import BaseIdentity, check_base, identity_of
from llama_jax.checkpoints.config import CheckpointConfig, ConvertConfig
from llama_jax.checkpoints.conversion import convert_model
from llama_jax.checkpoints.formats.gguf import write_gguf
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.orbax import open_orbax, write_orbax
from llama_jax.checkpoints.formats.weights import WeightName, is_padded, padded, weight_names
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.checkpoints.steps.manifest import read_manifest
from llama_jax.checkpoints.steps.saving import Checkpoints
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig, LlamaConfig


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


@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.slow
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


def run_with_padding(folder: Path, kind: np.dtype, garbage: float) -> Path:
    """A run of the small weights with something in the rows that no token reaches, as training leaves it."""
    weights, leaves = of_kind(kind), {}
    for name in weight_names(weights.config):
        layers = range(weights.config.num_layers) if name.per_layer else (None,)
        tensors = [padded(weights.read(name, layer), name, weights.config) for layer in layers]
        leaf = np.stack(tensors) if name.per_layer else tensors[0]
        if is_padded(name.ours, weights.config):
            leaf[(slice(40, None),) if name.ours == "embedding/table" else (slice(None), slice(40, None))] = garbage
        leaves[name.ours] = jnp.asarray(leaf)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(), say=pytest.fail)
    files = {"model/config.json": json.dumps(weights.config.to_json()).encode()}
    checkpoints.save(7, {"params": tree.unflatten(leaves)}, files, {})
    checkpoints.wait()
    return folder


@pytest.mark.parametrize("store", some(["float32", "bfloat16", "nf4"], ["float32"]))
@pytest.mark.slow
def test_rows_that_no_token_reaches_make_no_other_base(bases, tmp_path, store) -> None:
    again = "bfloat16" if store == "bfloat16" else "float32"
    run = run_with_padding(tmp_path / "run", FLOAT32, garbage=0.5)
    of_run = identity(run, store, devices=8)
    assert of_run.source == identity(bases["hf"]).source
    assert of_run.stored == identity(bases["hf"], store).stored
    for export in ("hf", "run", "model.gguf", "bfloat16") if store == "bfloat16" else ("hf", "run", "model.gguf"):
        check_base(of_run, identity(bases[export], again), "adapter")
        check_base(identity(bases[export], store), identity(run, again), "adapter")
    weights = open_orbax(epath.Path(run), step=None, say=print)
    assert identity_of(weights, "run", 7).source == of_run.source


def test_an_adapter_that_remembers_such_rows_still_knows_its_run(tmp_path) -> None:
    """As those of earlier versions do."""
    run = run_with_padding(tmp_path / "run", FLOAT32, garbage=0.5)
    saved = read_manifest(epath.Path(run / "checkpoints" / "7")).leaves["params"]
    now = identity(run)
    assert saved["embedding/table"] != now.source["embedding/table"]
    before = dataclasses.replace(now, source=saved, stored=saved)
    check_base(before, now, "adapter")
    check_base(before, identity_of(open_orbax(epath.Path(run), step=None, say=print), now.name, 7), "adapter")
    other = identity(run_with_padding(tmp_path / "other", FLOAT32, garbage=0.25))
    with pytest.raises(UserError, match="embedding/table has other values"):
        check_base(before, other, "adapter")


def test_a_base_that_changed_where_it_was_is_said_to_have_changed(bases, tmp_path) -> None:
    before = identity(bases["hf"])
    changed = dataclasses.replace(identity_of(Changed(where="layers/mlp_norm/scale"), before.name, None))
    written = datetime.fromtimestamp(max(path.stat().st_mtime for path in bases["hf"].iterdir()))
    message = (
        f"adapter: its base, {bases['hf']}, has changed since it was trained on, last on {written:%Y-%m-%d at %H:%M}: "
        f"layers/mlp_norm/scale has other values than in {bases['hf']}, the base it was trained on"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_base(before, changed, "adapter")
    at_7, at_9 = (dataclasses.replace(each, step=step) for each, step in ((before, 7), (changed, 9)))
    message = f"adapter: belongs to step 7 of {bases['hf']}, and this is step 9: layers/mlp_norm/scale has other values"
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check_base(at_7, at_9, "adapter")
    with pytest.raises(UserError, match=r"has changed since it was trained on: layers"):
        gone = dataclasses.replace(changed, name=str(tmp_path / "gone"))
        check_base(dataclasses.replace(before, name=gone.name), gone, "adapter")


def test_an_adapter_for_peft_keeps_to_the_step_that_it_was_trained_on(bases, tmp_path) -> None:
    base, target = tmp_path / "base", tmp_path / "peft"
    shutil.copytree(bases["run"], base)
    run = save_adapter_run(tmp_path / "adapter", identity(base), random_adapter(SMALL))
    settings = {"source": str(run), "target": str(target), "format": "peft", "no_check": True}
    convert_model(ConvertConfig(**settings), lambda line: None)  # pyright: ignore[reportArgumentType]
    for place in (target, run):
        assert open_weights(str(place), step=None, say=pytest.fail).config == SMALL
    (base / "checkpoints" / "0").rename(base / "checkpoints" / "5")
    with pytest.raises(UserError, match=f"{target}: is an adapter over step 0 of {base}, which is not there anymore"):
        open_weights(str(target), step=None, say=pytest.fail)
    with pytest.raises(UserError, match=f"{target}: belongs to a base other than {bases['bfloat16']}: embedding/table"):
        open_weights(str(bases["bfloat16"]), step=None, say=pytest.fail, adapter=str(target))
    assert open_weights(str(bases["hf"]), step=None, say=pytest.fail, adapter=str(target)).config.num_layers == 2
    (target / "llama_jax_base.json").unlink()  # as an adapter that PEFT wrote: by its name alone
    assert open_weights(str(bases["bfloat16"]), step=None, say=pytest.fail, adapter=str(target)).config.num_layers == 2


@pytest.mark.slow
def test_a_base_that_is_a_run_may_be_replaced_by_its_export_and_a_step_that_is_gone_is_named(bases, tmp_path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["run"], base)
    adapter = save_adapter_run(tmp_path / "adapter", identity(base), random_adapter(SMALL))

    def opened() -> LlamaConfig:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        with jax.set_mesh(mesh):
            found = open_params(ModelReference(str(adapter)), ComputeConfig(), say=pytest.fail).model.config
            assert open_weights(str(adapter), step=None, say=pytest.fail).config == found
            return found

    assert opened() == SMALL
    (base / "checkpoints" / "0").rename(base / "checkpoints" / "5")
    for use in (opened, lambda: open_weights(str(adapter), step=None, say=pytest.fail)):
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value) == (
            f"--model {adapter} step 5: is an adapter over step 0 of {base}, which is not there anymore (there are 5): "
            "that run removed it when it went on, or was made anew; an export or a copy of that step serves as well: "
            f"give its base as --model and {adapter} step 5 as --adapters"
        )
    shutil.rmtree(base)
    shutil.copytree(bases["hf"], base)  # one model, where there was a run with steps
    assert dataclasses.replace(opened(), context_length=SMALL.context_length) == SMALL
