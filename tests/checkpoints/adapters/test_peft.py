"""Adapters of PEFT: those it wrote give its logits here, those written here give ours there, and what strangers send is
refused in one line."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from formula_weights import BASE, ORACLE, SHAPES, TOKENS, FormulaWeights
from safetensors.numpy import load_file, save_file
from small_weights import logits
from sweeps import some

from llama_jax.checkpoints.adapters.peft import read_peft, write_peft
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core import tree
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.model.config import ComputeConfig, LlamaConfig

RECORDED = np.load(ORACLE / "peft_directories.npz")
BASES = {"lora": "grouped_query", "every_linear": "multi_head", "dora": "multi_head", "one_layer": "tied"}
"""The base of each recorded adapter."""
SAVED = dict.fromkeys(("tied_embedding", "tied_head", "tied_both"), "tied") | {
    "full_names": "multi_head",
    "untied": "multi_head",
}
"""Of those that were trained with whole matrices, whose names PEFT spells in several ways."""


def config_of(name: str) -> LlamaConfig:
    return LlamaConfig.from_json(BASE | SHAPES[(BASES | SAVED)[name]])


def recorded(name: str, folder: Path) -> Path:
    """The directory as PEFT wrote it."""
    folder.mkdir(exist_ok=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_bytes(RECORDED[f"{name}/{file}"].tobytes())
    return folder


def base_directory(name: str, folder: Path) -> Path:
    folder.mkdir()
    write_hugging_face(folder, FormulaWeights(config_of(name)))
    return folder


def logits_over(base: Path, adapters: list[str], devices: int = 1) -> np.ndarray:
    """Of the first row of tokens, base and adapter side by side."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        opened = open_params(ModelReference(str(base), adapters=adapters), ComputeConfig(), say=print)
        rows = np.tile(TOKENS[:1], (devices, 1)).astype(np.int32)
        return np.asarray(jax.jit(opened.model.logits)(opened.params, rows))[:1]


@pytest.mark.parametrize("name", some(BASES | SAVED, ("tied_head",)))
def test_an_adapter_that_peft_wrote_has_its_logits(tmp_path, name) -> None:
    base, adapter = base_directory(name, tmp_path / "base"), recorded(name, tmp_path / "adapter")
    expected = RECORDED[f"{name}/logits"]
    np.testing.assert_allclose(logits_over(base, [str(adapter)]), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits_over(base, [str(adapter)], devices=8), expected, atol=1e-4, rtol=0)
    merged = open_weights(str(base), step=None, say=print, adapter=str(adapter))
    np.testing.assert_allclose(logits(merged, TOKENS[:1]), expected, atol=1e-4, rtol=0)
    assert np.abs(logits_over(base, []) - expected).max() > 0.1


@pytest.mark.parametrize("name", BASES)
def test_what_is_written_is_what_peft_wrote(tmp_path, name) -> None:
    theirs, ours = recorded(name, tmp_path / "theirs"), tmp_path / "ours"
    ours.mkdir()
    adapter = read_peft(theirs, config_of(name))
    write_peft(ours, adapter, config_of(name))
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (theirs, ours))
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    again = read_peft(ours, config_of(name))
    jax.tree.map(np.testing.assert_array_equal, again.factors, adapter.factors)
    assert again.config == adapter.config
    said = [json.loads((folder / "adapter_config.json").read_text()) for folder in (theirs, ours)]
    for field in ("r", "use_rslora", "use_dora", "bias", "peft_type", "task_type", "lora_dropout"):
        assert said[0][field] == said[1][field], field


def test_ranks_and_scales_of_layers_differ_as_in_the_file(tmp_path) -> None:
    adapter = read_peft(recorded("every_linear", tmp_path / "adapter"), config_of("every_linear"))
    layers = adapter.factors["layers"]
    query, down, value = layers["attention"]["q_proj"], layers["mlp"]["down_proj"], layers["attention"]["v_proj"]
    assert query["a"].shape == (2, 32, 4) and down["a"].shape == (2, 56, 6)
    assert not query["a"][0, :, 2:].any() and query["a"][1, :, 2:].all()
    # rsLoRA: alpha / sqrt(rank)
    np.testing.assert_allclose(query["scale"], [8 / 2**0.5, 8 / 4**0.5], rtol=1e-6)
    np.testing.assert_allclose(value["scale"], [3 / 2, 3 / 2], rtol=1e-6)
    np.testing.assert_allclose(layers["mlp"]["up_proj"]["scale"], [4, 5 / 2], rtol=1e-6)
    assert adapter.config.rank == 6 and adapter.config.rank_stabilized


@pytest.mark.parametrize("name", SAVED)
def test_whole_matrices_are_known_by_every_name_that_peft_gives_them(tmp_path, name) -> None:
    folder = recorded(name, tmp_path / "adapter")
    adapter, tensors = read_peft(folder, config_of(name)), load_file(folder / "adapter_model.safetensors")
    table, head = ("base_model.model.model.embed_tokens.weight", HEAD)
    np.testing.assert_array_equal(adapter.saved_modules["embedding/table"][:97], tensors[table])
    assert adapter.config.modules_to_save == (("embedding", "lm_head") if name == "full_names" else ("embedding",))
    if name == "full_names":
        np.testing.assert_array_equal(adapter.saved_modules["lm_head/kernel"].T[:97], tensors[head])


def test_an_adapter_over_a_resized_vocabulary_says_how_to_make_its_base(tmp_path) -> None:
    for rows in (90, 104):
        config = dataclasses.replace(config_of("full_names"), vocab_size=rows)
        with pytest.raises(UserError, match=rf"has 97 rows, the base {rows}; .*resize_token_embeddings\(97\)"):
            read_peft(recorded("full_names", tmp_path / "adapter"), config)


@pytest.mark.parametrize("name", BASES | SAVED)
def test_peft_opens_what_is_written_and_computes_the_same(tmp_path, name) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base, ours = base_directory(name, tmp_path / "base"), tmp_path / "ours"
    ours.mkdir()
    write_peft(ours, read_peft(recorded(name, tmp_path / "theirs"), config_of(name)), config_of(name))
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), ours).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(TOKENS[:1])).logits.numpy()
    np.testing.assert_allclose(found, logits_over(base, [str(ours)]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found, RECORDED[f"{name}/logits"], atol=1e-4, rtol=0)


def test_a_saved_embedding_of_tied_matrices_comes_back_from_both_copies(tmp_path) -> None:
    config = config_of("one_layer")
    adapter = read_peft(recorded("one_layer", tmp_path / "theirs"), config)
    table = np.zeros((config.padded_vocab_size, config.width), np.float32)
    table[: config.vocab_size] = np.random.default_rng(0).standard_normal((config.vocab_size, config.width))
    ours = tmp_path / "ours"
    ours.mkdir()
    write_peft(ours, type(adapter)(**vars(adapter) | {"saved_modules": {"embedding/table": table}}), config)
    found = read_peft(ours, config)
    np.testing.assert_array_equal(found.saved_modules["embedding/table"], table)
    assert found.saved_modules.keys() == {"embedding/table"} and found.config.modules_to_save == ("embedding",)
    change_tensors(ours, lambda tensors: tensors.update({HEAD: tensors[HEAD] + 1}))
    with pytest.raises(UserError, match="head apart from the embedding"):
        read_peft(ours, config)


START = "base_model.model.model.layers.0.self_attn.q_proj"
HEAD = "base_model.model.lm_head.weight"


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file)


def set_tensor(name: str, array: np.ndarray | None) -> Callable[[dict[str, np.ndarray]], object]:
    """A change of one tensor, None: taken away."""
    return lambda tensors: tensors.pop(name) if array is None else tensors.update({name: array})


ONES = np.ones((4, 32), np.float32)

WRONG_CONFIGS = {
    "peft_type": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; \"LORA\" is expected"),
    "bias": ({"bias": "all"}, "bias is 'all'"),
    "task": ({"task_type": "TOKEN_CLS"}, "task_type is 'TOKEN_CLS'"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "new": ({"use_qalora": True}, "use_qalora is True, which is not supported; merge it in PEFT (merge_and_unload)"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is [1], which is not supported"),
    "rank zero": ({"r": 0}, "r is 0; a whole number"),
    "rank of a bool": ({"r": True}, "r is True; a whole number"),
    "other rank": ({"r": 5}, "has rank 4, the configuration says 5"),
    "alpha": ({"lora_alpha": -1}, "lora_alpha is -1; a number greater than 0"),
    "dropout": ({"lora_dropout": 1.5}, "lora_dropout is 1.5"),
    "no targets": ({"target_modules": None}, "lacks target_modules"),
    "targets": ({"target_modules": [1]}, "target_modules is [1]; a list of names"),
    "more targets": ({"target_modules": ["q_proj", "o_proj", "v_proj"]}, "0.self_attn.o_proj.lora_A.weight, which is"),
    "fewer targets": ({"target_modules": ["q_proj"]}, "has 4 tensors that do not fit this base"),
    "nothing": ({"target_modules": ["key"]}, "tensors that do not fit this base"),
    "pattern": ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern is"),
    "expression": ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern has '(a+)+b'; write names"),
    "layers": ({"layers_to_transform": "all"}, "layers_to_transform is 'all'"),
    "saved, in part": ({"modules_to_save": ["tokens"]}, "modules_to_save has 'tokens'; only embed_tokens, lm_head"),
    "saved": ({"modules_to_save": ["norm"]}, "modules_to_save has 'norm'; only embed_tokens, lm_head, score can"),
    "saved, absent": ({"modules_to_save": ["lm_head"]}, f"lacks tensor {HEAD}"),
    "base": ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
    "dora": ({"use_dora": True}, f"{START}.lora_magnitude_vector, which is not there"),
}
WRONG_TENSORS = {
    "missing": (f"{START}.lora_B.weight", None, "lora_B.weight, which is not there"),
    "unknown": (
        "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight",
        ONES,
        "has 1 tensors that do not fit this",
    ),
    "head": (
        f"{HEAD.removesuffix('weight')}lora_A.weight",
        ONES,
        "of a LoRA on lm_head, which is not supported; merge it",
    ),
    "embedding": (
        "base_model.model.model.embed_tokens.lora_embedding_A",
        ONES,
        "embed_tokens.lora_embedding_A of a LoRA on model.embed_tokens, which is not supported",
    ),
    "rank": (f"{START}.lora_A.weight", np.ones((3, 32), np.float32), "has rank 3, the configuration says 4"),
    "ranks": (f"{START}.lora_B.weight", np.ones((32, 3), np.float32), "shape [32, 3], [32, 4] is expected"),
    "no rank": (f"{START}.lora_A.weight", np.ones((0, 32), np.float32), "shape [0, 32], [rank, 32] is expected"),
    "huge rank": (f"{START}.lora_A.weight", np.ones((99, 32), np.float32), "shape [99, 32], [rank, 32] is expected"),
    "width": (f"{START}.lora_A.weight", np.ones((4, 33), np.float32), "shape [4, 33], [rank, 32] is expected"),
    "flat": (f"{START}.lora_A.weight", np.ones(128, np.float32), "shape [128], [rank, 32] is expected"),
    "not finite": (f"{START}.lora_A.weight", ONES * np.nan, "has 128 non-finite values"),
    "type": (f"{START}.lora_A.weight", np.ones((4, 32), np.int32), "has type int32"),
    "table": ("base_model.model.model.embed_tokens.weight", ONES, "has 4 rows, the base 97"),
}


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_peft(folder, config_of("lora"))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_configuration_that_cannot_be_kept_is_refused(tmp_path, case) -> None:
    changes, message = WRONG_CONFIGS[case]
    folder = recorded("lora", tmp_path / "adapter")
    change_config(folder, changes)
    assert_refused(folder, message)


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_refused(tmp_path, case) -> None:
    name, array, message = WRONG_TENSORS[case]
    folder = recorded("lora", tmp_path / "adapter")
    change_tensors(folder, set_tensor(name, array))
    assert_refused(folder, message)


BROKEN = {
    "no json": ("adapter_config.json", b'{"r": 8', "is not JSON"),
    "twice": ("adapter_config.json", b'{"r": 8, "r": 9}', "has the key 'r' twice"),
    "no object": ("adapter_config.json", b"[]", "where a JSON object is expected"),
    "deep": ("adapter_config.json", b"[" * 100_000, "nested too deeply"),
    "large": ("adapter_config.json", b" " * (2**20 + 1), "is longer than"),
    "empty": ("adapter_model.safetensors", b"", "cut short"),
    "no header": ("adapter_model.safetensors", b"\xff" * 64, "its header alone asks for"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(tmp_path, case) -> None:
    name, content, message = BROKEN[case]
    folder = recorded("lora", tmp_path / "adapter")
    (folder / name).write_bytes(content)
    assert_refused(folder, message)


def test_files_that_are_not_there_or_lead_away_are_refused(tmp_path) -> None:
    folder = recorded("lora", tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(tmp_path / "elsewhere")
    assert_refused(folder, "has neither adapter_model.safetensors nor adapter_model.bin")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert_refused(folder, "is a link out of its directory")


def test_expressions_of_strangers_are_not_run(tmp_path) -> None:
    """This one would take longer than the universe lasts; the tensors say which modules there are."""
    folder = recorded("lora", tmp_path / "adapter")
    expected = read_peft(folder, config_of("lora"))
    evil = r"(\w|\w|[a-z])*(\w*)*(\.*\w*)*!"
    change_config(folder, {"target_modules": evil, "rank_pattern": {evil: 3}, "exclude_modules": evil})
    begun = time.process_time()
    found = read_peft(folder, config_of("lora"))
    assert time.process_time() - begun < 2
    jax.tree.map(np.testing.assert_array_equal, found.factors, expected.factors)


def test_a_directory_of_peft_as_the_model_is_put_over_the_base_it_names(tmp_path) -> None:
    base, adapter = base_directory("lora", tmp_path / "base"), recorded("lora", tmp_path / "adapter")
    with pytest.raises(UserError, match="does not name its base; give its base as --model"):
        logits_over(adapter, [])
    change_config(adapter, {"base_model_name_or_path": str(base)})
    np.testing.assert_allclose(logits_over(adapter, []), RECORDED["lora/logits"], atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="is an adapter itself"):
        logits_over(adapter, [str(adapter)])
    (adapter / "config.json").write_bytes((base / "config.json").read_bytes())  # as some trainers leave it there
    np.testing.assert_allclose(logits_over(adapter, []), RECORDED["lora/logits"], atol=1e-4, rtol=0)
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="base: no such file or directory; give its base as --model"):
        logits_over(adapter, [])


def test_a_model_is_no_adapter(tmp_path) -> None:
    base = base_directory("lora", tmp_path / "base")
    write_orbax(epath.Path(tmp_path / "run"), FormulaWeights(config_of("lora")), dtype=None)
    for model in (base, tmp_path / "run"):
        with pytest.raises(UserError, match="is a model, not an adapter"):
            logits_over(base, [str(model)])


def test_bfloat16_and_pickled_factors_are_read_as_the_same_float32(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    folder = recorded("lora", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    half = {name: torch.from_numpy(array).to(torch.bfloat16) for name, array in tensors.items()}
    torch.save(half, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    factors = tree.flatten(read_peft(folder, config_of("lora")).factors)
    expected = half[f"{START}.lora_A.weight"].float().numpy().T
    np.testing.assert_array_equal(factors["layers/attention/q_proj/a"][0], expected)
