"""Adapters over their base: from a run, several at once, merged, taken out again, and never over another base."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_runs import random_adapter, save_adapter_run
from etils import epath
from small_weights import BFLOAT16, FLOAT32, SMALL, SmallWeights, logits, of_kind
from sweeps import some

from llama_jax.checkpoints.adapters.adapter import adapter_config_from_json, adapter_config_json
from llama_jax.checkpoints.adapters.merged_weights import merged, unmerged
from llama_jax.checkpoints.adapters.peft import write_peft
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.formats.weights import tensors_of
from llama_jax.checkpoints.opening import ModelReference, OpenParams, open_params
from llama_jax.checkpoints.weight_reading import open_adapter, open_weights
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import AdapterConfig, ComputeConfig
from llama_jax.model.lora import merge

TOKENS = np.random.default_rng(0).integers(0, SMALL.vocab_size, (8, 24)).astype(np.int32)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ("q_proj", "v_proj"), "rank": 3},
    "rank_stabilized": {"target_modules": ("o_proj", "down_proj"), "rank": 5, "rank_stabilized": True},
    "dora": {"target_modules": ("q_proj", "gate_proj"), "rank": 2, "dora": True},
}


def opened(path: Path, adapters: tuple[Path, ...] = (), devices: int = 1, **arguments: Any) -> OpenParams:
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    names = tuple(map(str, adapters))
    with jax.set_mesh(mesh):
        settings = {"say": pytest.fail, "identify": False} | arguments
        return open_params(ModelReference(str(path), adapters=names), ComputeConfig(), **settings)


def computed(found: OpenParams, adapter_ids: list[int] | None = None) -> np.ndarray:
    """Logits of TOKENS."""
    model = found.model
    ids = None if adapter_ids is None else jnp.asarray(adapter_ids, jnp.int32)
    mesh = jax.tree.leaves(found.params)[0].sharding.mesh
    with jax.set_mesh(mesh):
        hidden = jax.jit(model.hidden)(found.params, jnp.asarray(TOKENS), adapter_ids=ids)
        return np.asarray(model.unembed(model.head(found.params), hidden)[..., : model.config.vocab_size])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "base"
    folder.mkdir()
    write_hugging_face(folder, of_kind(FLOAT32))
    return folder


@pytest.fixture(scope="module")
def adapters(base) -> dict[str, Path]:
    """Runs with an adapter of each kind over the base."""
    identity = opened(base, identify=True).identity
    return {
        name: save_adapter_run(base.parent / name, identity, random_adapter(SMALL, seed=seed, **kind))
        for seed, (name, kind) in enumerate(KINDS.items())
    }


@pytest.mark.parametrize("devices", some([1, 8], [8]))
def test_a_run_with_an_adapter_opens_over_the_base_it_names(base, adapters, devices) -> None:
    beside, alone = opened(base, (adapters["lora"],), devices), opened(adapters["lora"], (), devices)
    assert alone.adapters == (f"{adapters['lora']} step 5",) and alone.source.startswith(f"{base} with ")
    np.testing.assert_array_equal(computed(alone), computed(beside))
    assert np.abs(computed(alone) - computed(opened(base, (), devices))).max() > 0.1
    expected = random_adapter(SMALL, seed=0, **KINDS["lora"]).factors
    jax.tree.map(np.testing.assert_array_equal, alone.params["lora"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_rows_of_a_batch_take_different_adapters(base, adapters, devices) -> None:
    alone = [computed(opened(base, (path,), devices)) for path in adapters.values()]
    together = opened(base, tuple(adapters.values()), devices)
    ids = [0, 1, 2, 2, 1, 0, 0, 1]
    expected = np.stack([alone[number][row] for row, number in enumerate(ids)])
    np.testing.assert_allclose(computed(together, ids), expected, atol=2e-5, rtol=0)
    assert len(together.adapters) == 3


@pytest.mark.parametrize("name", some(KINDS, ("dora",)))
@pytest.mark.slow
def test_merging_tensor_by_tensor_is_merging_the_tree(base, adapters, name) -> None:
    beside = opened(base, (adapters[name],))
    weights = open_weights(str(base), step=None, say=print, adapter=str(adapters[name]))
    whole = tree.flatten(merge(beside.params))
    for row, layer in tensors_of(weights.config):
        expected = np.asarray(whole[row.ours])
        expected = expected if layer is None else expected[layer]
        found = weights.read(row, layer)
        np.testing.assert_allclose(found, expected[tuple(map(slice, found.shape))], atol=1e-6, rtol=0)
    np.testing.assert_allclose(logits(weights, TOKENS), computed(beside), atol=3e-5, rtol=0)
    same = open_weights(str(adapters[name]), step=5, say=print)  # the run alone, which names its base
    np.testing.assert_array_equal(logits(same, TOKENS), logits(weights, TOKENS))


@pytest.mark.parametrize("name", ["lora", "rank_stabilized"])
def test_an_adapter_is_taken_out_again(base, adapters, tmp_path, name) -> None:
    write_hugging_face(tmp_path, open_weights(str(base), step=None, say=print, adapter=str(adapters[name])))
    whole = open_weights(str(tmp_path), step=None, say=print)
    adapter = open_adapter(str(adapters[name]), step=None, say=print)
    back = unmerged(whole, adapter.read(whole.config))
    original = of_kind(FLOAT32)
    for row, layer in tensors_of(SMALL):
        np.testing.assert_allclose(back.read(row, layer), original.read(row, layer), atol=1e-6, rtol=0)


def test_merging_rounds_once() -> None:
    """A change below half a step of bfloat16 in each of two summands shows in their sum."""
    adapter = random_adapter(SMALL, target_modules=("q_proj",), rank=3)
    weights = merged(of_kind(BFLOAT16), adapter)
    row = next(row for row, _ in tensors_of(SMALL) if "q_proj" in row.ours)
    stacked = adapter.factors["layers"]["attention"]["q_proj"]
    factors = {part: leaf[1].astype(np.float64) for part, leaf in stacked.items()}
    exact = of_kind(BFLOAT16).read(row, 1).astype(np.float64) + factors["scale"] * factors["a"] @ factors["b"]
    assert weights.dtype(row) == BFLOAT16
    np.testing.assert_array_equal(weights.read(row, 1), exact.astype(np.float32).astype(BFLOAT16))


def test_what_merging_replaces_cannot_be_taken_out(adapters) -> None:
    with pytest.raises(UserError, match="--unmerge: by hand replaces embedding/table; keep the base"):
        unmerged(of_kind(FLOAT32), random_adapter(SMALL, saved=("embedding/table",)))
    with pytest.raises(UserError, match="is a DoRA, which replaces the length of columns"):
        unmerged(of_kind(FLOAT32), random_adapter(SMALL, **KINDS["dora"]))


@pytest.mark.parametrize("other", ["weight", "shape"])
def test_another_base_is_refused(base, adapters, tmp_path, other) -> None:
    if other == "shape":
        weights = SmallWeights(dataclasses.replace(SMALL, mlp_width=32))
    else:
        weights = merged(of_kind(FLOAT32), random_adapter(SMALL, target_modules=("up_proj",), rank=1))
    write_hugging_face(tmp_path, weights)
    message = "mlp_width is 32 there, 24" if other == "shape" else "layers/mlp/up_proj/kernel has other values"
    here = f"{adapters['lora']} step 5: belongs to a base other than {tmp_path}"
    with pytest.raises(UserError, match=f"{here}: {message}"):
        opened(tmp_path, (adapters["lora"],))
    with pytest.raises(UserError, match=message):
        opened(tmp_path, (adapters["dora"], adapters["lora"]))
    with pytest.raises(UserError, match=message):
        open_weights(str(tmp_path), step=None, say=print, adapter=str(adapters["lora"]))


@pytest.mark.slow
def test_a_base_that_is_a_run_is_taken_at_the_step_of_the_training(tmp_path) -> None:
    run = tmp_path / "base"
    write_orbax(epath.Path(run), of_kind(FLOAT32), dtype=None)
    identity = opened(run, identify=True).identity
    trained = save_adapter_run(tmp_path / "adapter", identity, random_adapter(SMALL))
    (run / "checkpoints/0").rename(run / "checkpoints/moved")
    with pytest.raises(UserError, match=r"is an adapter over step 0 of .*, which is not there anymore"):
        opened(trained)
    (run / "checkpoints/moved").rename(run / "checkpoints/0")
    assert computed(opened(trained)).shape == (8, 24, 40)


def test_a_base_that_went_away_is_told_with_what_to_do(base, adapters, tmp_path) -> None:
    identity = dataclasses.replace(opened(base, identify=True).identity, name=str(tmp_path / "gone"))
    trained = save_adapter_run(tmp_path / "adapter", identity, random_adapter(SMALL))
    message = f"gone: no such file or directory; give its base as --model and {trained} step 5 as --adapters"
    with pytest.raises(UserError, match=message):
        opened(trained)
    assert opened(base, (trained,)).adapters == (f"{trained} step 5",)


def test_modules_trained_whole_take_the_place_of_the_base_and_stand_alone(base, adapters, tmp_path) -> None:
    identity = opened(base, identify=True).identity
    saved = ("embedding/table", "lm_head/kernel")
    adapter = random_adapter(SMALL, saved=saved, modules_to_save=("embedding", "lm_head"))
    trained = save_adapter_run(tmp_path / "adapter", identity, adapter)
    found = opened(base, (trained,))
    np.testing.assert_array_equal(found.params["embedding"]["table"], adapter.saved_modules["embedding/table"])
    weights = open_weights(str(trained), step=None, say=print)
    np.testing.assert_allclose(logits(weights, TOKENS), computed(found), atol=3e-5, rtol=0)
    with pytest.raises(UserError, match="replaces embedding/table and lm_head/kernel, so it cannot be combined"):
        opened(base, (adapters["lora"], trained))


def test_the_tokenizer_of_an_adapter_goes_before_that_of_the_base(base, tmp_path) -> None:
    identity = opened(base, identify=True).identity
    files = {"tokenizer.json": b"{}", "chat_template.jinja": b"theirs"}
    plain = save_adapter_run(tmp_path / "plain", identity, random_adapter(SMALL))
    trained = save_adapter_run(tmp_path / "trained", identity, random_adapter(SMALL), files=files)
    assert opened(base, (trained,)).files == files
    assert opened(base, (plain,)).files == {} == opened(base, (plain, trained)).files


def test_an_adapter_over_an_adapter_is_refused(base, adapters, tmp_path) -> None:
    identity = dataclasses.replace(opened(base, identify=True).identity, name=str(adapters["lora"]))
    trained = save_adapter_run(tmp_path / "adapter", identity, random_adapter(SMALL))
    with pytest.raises(UserError, match=r"is an adapter over another, .*; merge that first"):
        opened(trained)


@pytest.mark.slow
def test_a_run_and_its_directory_of_peft_are_the_same_adapter(base, adapters, tmp_path) -> None:
    for number, (name, kind) in enumerate(KINDS.items()):
        folder = tmp_path / name
        folder.mkdir()
        write_peft(folder, random_adapter(SMALL, seed=number, **kind), SMALL)
        np.testing.assert_array_equal(computed(opened(base, (folder,))), computed(opened(base, (adapters[name],))))


def test_the_configuration_of_an_adapter_survives_its_file() -> None:
    config = AdapterConfig(rank=3, target_modules=("a", "b"), modules_to_save=("lm_head",), dora=True)
    assert adapter_config_from_json(adapter_config_json(config), "adapter.json") == config
    for content in (b'{"rank": "x"}', b'{"rank": -1}', b"[]"):
        with pytest.raises(UserError) as caught:
            adapter_config_from_json(content, "adapter.json")
        assert "\n" not in str(caught.value)
