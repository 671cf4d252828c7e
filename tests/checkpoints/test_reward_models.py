"""Reward models in and out: transformers and PEFT score as they do here, formats without a place for the head refuse
it, and whoever writes text is told that such a model writes none."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_runs import random_adapter, save_adapter_run
from etils import epath
from formula_weights import BASE, ORACLE, SHAPES, FormulaWeights
from safetensors.numpy import load_file, save_file
from small_rewards import ADAPTERS, CLASSIFIERS, LENGTHS, ROWS
from small_tokenizers import byte_level_file
from small_weights import SMALL, SmallWeights, assert_same, params_of
from sweeps import some

from llama_jax.checkpoints.adapters.adapter import identity_of
from llama_jax.checkpoints.adapters.peft import read_peft, write_peft
from llama_jax.checkpoints.config import UseConfig
from llama_jax.checkpoints.finding import run_kind
from llama_jax.checkpoints.formats.gguf import write_gguf
from llama_jax.checkpoints.formats.hugging_face import architecture_from, open_hugging_face, write_hugging_face
from llama_jax.checkpoints.formats.llama2c import write_llama2c
from llama_jax.checkpoints.formats.meta import write_meta
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.checkpoints.opening import ANY, TEXT, ModelReference, find_model, open_named, open_params
from llama_jax.checkpoints.reward_normalization import (
    NORMALIZATION_FILE,
    PADDING_FILE,
    RewardNormalization,
    normalization_of,
    padding_file,
    read_normalization,
    read_padding,
    without_normalization,
)
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core.config import MeshConfig
from llama_jax.core.errors import UserError
from llama_jax.core.mesh import make_mesh
from llama_jax.data.preferences.rows import ending_before
from llama_jax.model.config import ComputeConfig, LlamaConfig, ModelConfig
from llama_jax.model.llama import language_model

RECORDED = np.load(ORACLE / "reward_models.npz")
BASES = {name: base for name, (base, _) in ADAPTERS.items()}
SCALAR = dataclasses.replace(SMALL, scalar_head=True)


def small(name: str, *, scalar_head: bool) -> LlamaConfig:
    return LlamaConfig.from_json(BASE | SHAPES[name] | {"scalar_head": scalar_head})


def exported(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    write_hugging_face(folder, weights)
    return folder


def recorded(name: str, folder: Path) -> Path:
    """The adapter as PEFT wrote it."""
    folder.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_bytes(RECORDED[f"{name}/{file}"].tobytes())
    return folder


def scores_of(path: Path, *adapters: Path) -> np.ndarray:
    """Of the last token of each row of `small_rewards`, all read in one batch."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        reference = ModelReference(str(path), adapters=[*map(str, adapters)])
        opened = open_params(reference, ComputeConfig(), identify=False, say=print)
        model = opened.model
        scores = jax.jit(lambda params, tokens: model.scores(params, model.hidden(params, tokens)))
        found = np.asarray(scores(opened.params, jnp.asarray(ROWS, jnp.int32)))
        return found[np.arange(len(LENGTHS)), np.array(LENGTHS) - 1]


@pytest.mark.parametrize("name", some(CLASSIFIERS, ("grouped_query",)))
def test_a_classifier_of_one_label_scores_as_in_transformers(tmp_path, name) -> None:
    config = small(name, scalar_head=True)
    said = json.loads(RECORDED[f"{name}/config.json"].tobytes())
    assert architecture_from(said, "config.json") == config
    folder = exported(FormulaWeights(config), tmp_path / "exported")
    ours = json.loads((folder / "config.json").read_text())
    for field in ("architectures", "id2label", "label2id"):
        assert ours[field] == said[field], field
    np.testing.assert_allclose(scores_of(folder), RECORDED[f"{name}/scores"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", some(BASES, ("tied_score",)))
def test_an_adapter_with_a_head_scores_as_in_peft(tmp_path, name) -> None:
    """Over the language model, beside it, merged into it, and written again."""
    base = exported(FormulaWeights(small(BASES[name], scalar_head=False)), tmp_path / "base")
    theirs, expected = recorded(name, tmp_path / "theirs"), RECORDED[f"{name}/scores"]
    np.testing.assert_allclose(scores_of(base, theirs), expected, atol=1e-4, rtol=0)
    merged = open_weights(str(base), step=None, say=print, adapter=str(theirs))
    assert merged.config.scalar_head
    np.testing.assert_allclose(scores_of(exported(merged, tmp_path / "merged")), expected, atol=1e-4, rtol=0)
    ours = tmp_path / "ours"
    ours.mkdir()
    write_peft(ours, read_peft(theirs, small(BASES[name], scalar_head=False)), merged.config)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (theirs, ours))
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    said = json.loads((ours / "adapter_config.json").read_text())
    assert said["task_type"] == "SEQ_CLS"
    assert said["modules_to_save"] == [*ADAPTERS[name][1].get("modules_to_save", []), "score"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_transformers_scores_an_export_as_we_do(tmp_path, name) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = exported(FormulaWeights(small(name, scalar_head=True)), tmp_path / "exported")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ours = scores_of(folder)
    for row, length in enumerate(LENGTHS):  # without a tokenizer no token is named for padding
        with torch.no_grad():
            found = theirs(torch.from_numpy(ROWS[row : row + 1, :length])).logits
        assert abs(found.item() - ours[row]) < 1e-4


@pytest.mark.parametrize("name", BASES)
def test_peft_scores_what_is_written_as_we_do(tmp_path, name) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    plain = small(BASES[name], scalar_head=False)
    base, ours = exported(FormulaWeights(plain), tmp_path / "base"), tmp_path / "ours"
    adapter = read_peft(recorded(name, tmp_path / "theirs"), plain)
    ours.mkdir()
    write_peft(ours, adapter, adapter.architecture(plain))
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=96)
    model = peft.PeftModel.from_pretrained(classifier, ours).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(ROWS)).logits[:, 0].numpy()
    np.testing.assert_allclose(found, scores_of(base, ours), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found, RECORDED[f"{name}/scores"], atol=1e-4, rtol=0)


def with_end_for_padding() -> dict[str, bytes]:
    """The files of a tokenizer whose padding is its EOS, as those of many chat models."""
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}
    return {"tokenizer.json": byte_level_file(), "tokenizer_config.json": json.dumps(names).encode()}


def test_an_export_is_padded_with_a_token_that_ends_no_answer(tmp_path) -> None:
    """transformers reads a score at the last token that is not padding: with EOS for it, before that of the answer."""
    config = dataclasses.replace(SCALAR, vocab_size=300)
    folder = exported(SmallWeights(config, files=with_end_for_padding()), tmp_path / "rewards")
    said, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert (said["pad_token_id"], tokenizer["pad_token"], said["eos_token_id"]) == (0, "<|bos|>", 1)
    plain = exported(
        SmallWeights(files=with_end_for_padding(), config=dataclasses.replace(config, scalar_head=False)),
        tmp_path / "plain",
    )
    assert json.loads((plain / "tokenizer_config.json").read_text())["pad_token"] == "<|eos|>"
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encode = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["the cat<|eos|>", "the mill and the donkey<|eos|>"]
    with torch.no_grad():
        together = theirs(**encode(texts, padding=True, return_tensors="pt")).logits[:, 0]
        alone = torch.cat([theirs(**encode(text, return_tensors="pt")).logits[:, 0] for text in texts])
    assert encode(texts[0])["input_ids"][-1] == 1
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    weights = open_weights(str(folder), step=None, say=print)
    model = language_model(config, ComputeConfig())
    hidden = model.hidden(params_of(weights), jnp.asarray([encode(texts[0])["input_ids"]], jnp.int32))
    assert abs(float(model.scores(params_of(weights), hidden)[0, -1]) - alone[0].item()) < 1e-4


def test_an_imported_reward_model_whose_padding_is_eos_is_read_where_transformers_reads_it(tmp_path) -> None:
    config = dataclasses.replace(SCALAR, vocab_size=300)
    folder = exported(SmallWeights(config, files=with_end_for_padding()), tmp_path / "rewards")
    for name, change in (("config.json", {"pad_token_id": 1}), ("tokenizer_config.json", {"pad_token": "<|eos|>"})):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(said | change))
    weights = open_weights(str(folder), step=None, say=print)
    assert read_padding(weights.files, "here") == 1 and PADDING_FILE not in without_normalization(weights.files)
    write_orbax(epath.Path(tmp_path / "whole"), weights, dtype=None)
    again = exported(open_weights(str(tmp_path / "whole"), step=None, say=print), tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["pad_token_id"] == 1
    assert json.loads((again / "tokenizer_config.json").read_text())["pad_token"] == "<|eos|>"
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(again).eval()
    encode = transformers.AutoTokenizer.from_pretrained(again)
    encoded = encode(["the cat<|eos|>", "the mill and the donkey<|eos|>"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**encoded).logits[:, 0].numpy()
    tokens, lengths = encoded["input_ids"].numpy(), encoded["attention_mask"].numpy().sum(axis=1)
    rows = {"tokens": tokens, "starts": np.zeros((2, 1, 1), np.int32), "ends": (lengths - 1).reshape(2, 1, 1)}
    ends = ending_before(rows, 1)["ends"][:, 0]
    assert (rows["ends"][:, 0] - ends).tolist() == [[1], [1]]
    model, params = language_model(config, ComputeConfig()), params_of(weights)
    values = np.asarray(model.scores(params, model.hidden(params, jnp.asarray(tokens, jnp.int32))))
    np.testing.assert_allclose(np.take_along_axis(values, ends, axis=1)[:, 0], expected, atol=1e-4, rtol=0)


def test_a_score_does_not_depend_on_padding_nor_on_what_else_is_in_the_batch() -> None:
    model = language_model(small("grouped_query", scalar_head=True), ComputeConfig())
    params = params_of(FormulaWeights(model.config))
    longest, text = 64, (np.arange(9, dtype=np.int32) * 7 + 3) % 90
    random = np.random.default_rng(0)

    @jax.jit
    def scores(tokens, segments, positions) -> jax.Array:
        return model.scores(params, model.hidden(params, tokens, positions, segments))

    def placed(start: int, filler: np.ndarray, rows: int) -> np.ndarray:
        """The score of the text where it begins at a place of one row, and other texts are everywhere else."""
        tokens = random.integers(0, 90, (rows, longest)).astype(np.int32)
        tokens[0], tokens[0, start : start + len(text)] = filler, text
        segments = np.ones((rows, longest), np.int32)
        segments[0, start : start + len(text)], segments[0, start + len(text) :] = 2, 3
        positions = np.tile(np.arange(longest, dtype=np.int32), (rows, 1))
        positions[0, start : start + len(text)] -= start
        return np.asarray(scores(tokens, segments, positions))[0, start + len(text) - 1]

    alone = placed(0, np.zeros(longest, np.int32), 1)
    for start, rows in ((0, 1), (17, 1), (longest - len(text), 1), (5, 4)):
        found = placed(start, random.integers(0, 90, longest).astype(np.int32), rows)
        np.testing.assert_allclose(found, alone, atol=1e-5, rtol=0)


def reward_run(folder: Path, base: Weights, name: str, **files: bytes) -> tuple[Path, np.ndarray]:
    """A run that trained an adapter and a head over a language model, and the head."""
    adapter = random_adapter(base.config, rank=2, size=0.1)
    head = np.random.default_rng(3).standard_normal((base.config.width, 1)).astype(np.float32)
    adapter = dataclasses.replace(adapter, saved_modules={"score/kernel": head})
    return save_adapter_run(folder, identity_of(base, name, None), adapter, files=files), head


def test_a_run_that_trained_a_head_opens_as_a_reward_model_over_its_base_alone(tmp_path) -> None:
    base = exported(SmallWeights(), tmp_path / "base")
    scale = RewardNormalization(2.0, -0.5)
    run, head = reward_run(tmp_path / "run", SmallWeights(), str(base), **{NORMALIZATION_FILE: scale.to_json()})
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        opened = open_params(ModelReference(str(run)), ComputeConfig(), say=print)
        assert opened.model.config == SCALAR and "lm_head" not in opened.params
        np.testing.assert_array_equal(opened.params["score"]["kernel"], head)
        assert read_normalization(opened.files, opened.source) == scale
        other = exported(SmallWeights(dataclasses.replace(SMALL, mlp_width=32)), tmp_path / "other")
        message = f"run step 5: belongs to a base other than {other}: mlp_width is 32 there, 24 in the base it was"
        with pytest.raises(UserError, match=message):
            open_params(ModelReference(str(other), adapters=[str(run)]), ComputeConfig(), say=print)
    merged = open_weights(str(run), step=None, say=print)
    write_orbax(epath.Path(tmp_path / "whole"), merged, dtype=None)
    whole = open_weights(str(tmp_path / "whole"), step=None, say=print)
    assert_same(whole, merged)
    assert whole.config.scalar_head and read_normalization(whole.files, "whole") == scale


def test_where_no_model_is_named_the_newest_run_that_serves_is_taken(tmp_path, monkeypatch) -> None:
    """A run of training begins with a language model, text is written with that or an adapter of it."""
    monkeypatch.chdir(tmp_path)
    runs = [Path("runs") / name for name in ("model", "adapter", "reward")]
    write_orbax(epath.Path(runs[0]), SmallWeights(), dtype=None)
    save_adapter_run(runs[1], identity_of(SmallWeights(), "base", None), random_adapter(SMALL, rank=2))
    reward_run(runs[2], SmallWeights(), "base")
    for day, run in enumerate(runs, 1):
        (run / "environment.json").write_text(json.dumps({"started": f"2025-01-0{day}"}))
    assert [run_kind(run) for run in runs] == [run.name for run in runs]
    said: list[str] = []
    found = [
        find_model(None, said.append),
        find_model(None, said.append, (), TEXT),
        find_model(None, said.append, (), ANY),
    ]
    assert found == [str(run) for run in runs]
    assert said[0] == "no --model given: taking the newest run that has made a model, runs/model"
    assert said[2] == "no --model given: taking the newest run, runs/reward"


def test_a_reward_model_is_no_base_for_an_adapter_of_the_language_model_it_came_from(tmp_path) -> None:
    base, rewards = SmallWeights(), exported(SmallWeights(SCALAR), tmp_path / "rewards")
    run = save_adapter_run(tmp_path / "run", identity_of(base, "base", None), random_adapter(SMALL, rank=2))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])), pytest.raises(UserError) as caught:
        open_params(ModelReference(str(rewards), adapters=[str(run)]), ComputeConfig(), say=print)
    assert f"belongs to a base other than {rewards}: scalar_head is True there" in str(caught.value)


WRITERS = {"GGUF": write_gguf, "Meta's format": write_meta, "llama2.c": write_llama2c}


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_without_a_place_for_the_head_refuse_it_in_one_line(tmp_path, kind) -> None:
    with pytest.raises(UserError, match=f"^small: has a scalar head, which {kind} has no place for; use --format hf"):
        WRITERS[kind](epath.Path(tmp_path), SmallWeights(SCALAR))
    assert not list(tmp_path.iterdir())


def test_whoever_writes_text_is_told_that_a_reward_model_writes_none(tmp_path) -> None:
    folder = exported(SmallWeights(SCALAR), tmp_path / "rewards")
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        with pytest.raises(UserError, match=r"needed, .* does not carry its own"):
            open_named(UseConfig(model=str(folder)), print)
        opened = open_params(ModelReference(str(folder)), ComputeConfig(), say=print)
        with pytest.raises(UserError, match=r"^the model has a scalar head: it scores text and predicts none$"):
            opened.model.logits(opened.params, jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(UserError, match="a reward model begins with a language model"):
        ModelConfig(scalar_head=True)


CLASSES = {"architectures": ["LlamaForSequenceClassification"]}
WRONG_CONFIGS = {
    "two labels": (CLASSES | {"id2label": {"0": "a", "1": "b"}}, "gives 2 labels; of classifiers only one with one"),
    "no labels": (CLASSES, "gives 2 labels"),
    "labels": (CLASSES | {"id2label": ["a"]}, "id2label is ['a']; an object of labels is expected"),
    "number": (CLASSES | {"num_labels": 3, "id2label": {"0": "a"}}, "gives 3 labels"),
    "classes": ({"architectures": "LlamaForSequenceClassification"}, "a list of names is expected"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_classifiers_that_are_no_reward_models_are_refused(tmp_path, case) -> None:
    changes, message = WRONG_CONFIGS[case]
    folder = exported(SmallWeights(SCALAR), tmp_path / "rewards")
    said = json.loads((folder / "config.json").read_text())
    del said["id2label"], said["label2id"]
    (folder / "config.json").write_text(json.dumps(said | changes))
    with pytest.raises(UserError) as caught:
        open_hugging_face(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


HEAD = "base_model.model.score.weight"
OTHER_KIND = "task_type makes it the adapter of a classifier, and the base is a language model"
WRONG_ADAPTERS = {
    "of a language model": ({"task_type": "CAUSAL_LM"}, {}, f"1 tensors that do not fit this base: {HEAD}"),
    "two labels": ({}, {HEAD: np.ones((2, 32), np.float32)}, "gives 2 labels; only a scalar head, one label, is read"),
    "no head": ({}, {HEAD: None}, f"lacks tensor {HEAD}, which modules_to_save asks for"),
    "head of the base": ({"modules_to_save": None}, {HEAD: None}, OTHER_KIND),
}


@pytest.mark.parametrize("case", WRONG_ADAPTERS)
def test_adapters_whose_head_does_not_fit_are_refused(tmp_path, case) -> None:
    settings, tensors, message = WRONG_ADAPTERS[case]
    folder = recorded("score", tmp_path / "adapter")
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(said | settings))
    stored = load_file(folder / "adapter_model.safetensors") | tensors
    kept = {name: array for name, array in stored.items() if array is not None}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(UserError) as caught:
        read_peft(folder, small("grouped_query", scalar_head=False))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_normalised_scores_of_the_references_have_mean_0_and_deviation_1() -> None:
    scores = np.array([3.0, 5.0, 7.0, 1.0])
    made = normalization_of(scores.mean(), scores.std())
    np.testing.assert_allclose([made(scores).mean(), made(scores).std()], [0, 1], atol=1e-12)
    assert normalization_of(2.0, 0.0)(2.0) == 0
    assert read_normalization({NORMALIZATION_FILE: made.to_json()}, "here") == made
    assert read_normalization({}, "here") is None
    huge = b'{"gain": 1' + b"0" * 400 + b', "bias": 0}'
    assert read_padding({}, "here") is None and read_padding(padding_file(7), "here") == 7
    with pytest.raises(UserError, match=f"here: {PADDING_FILE}: pad_token_id"):
        read_padding({PADDING_FILE: b'{"pad_token_id": true}'}, "here")
    for wrong in (b"[]", b'{"gain": 0, "bias": 0}', b'{"gain": 1}', b'{"gain": 1, "bias": "0"}', huge):
        with pytest.raises(UserError, match=f"here: {NORMALIZATION_FILE}"):
            read_normalization({NORMALIZATION_FILE: wrong}, "here")
