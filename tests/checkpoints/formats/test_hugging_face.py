"""Hugging Face directories: what is written is read again bit by bit, and hostile ones are refused in one line."""

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_weights import BFLOAT16, FLOAT16, FLOAT32, SMALL, SmallWeights, assert_same, of_kind, read_all

from llama_jax.checkpoints.formats.hugging_face import (
    architecture_from,
    config_values,
    hub_directory,
    open_hugging_face,
    write_hugging_face,
)
from llama_jax.checkpoints.formats.safetensors_files import open_safetensors, write_safetensors
from llama_jax.checkpoints.formats.weights import from_ours, tensors_of
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import hugging_face_files, train_tokenizer
from llama_jax.model.config import RopeScaling

EMBEDDING, HEAD, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def model_directory(parent: Path, weights: SmallWeights | None = None, **how: object) -> Path:
    directory = parent / "model"
    directory.mkdir()
    write_hugging_face(directory, weights or of_kind(FLOAT32), **how)
    return directory


def state_dict(weights: SmallWeights) -> dict[str, np.ndarray]:
    return {
        name.hugging_face.format(layer): from_ours(name, weights.read(name, layer), weights.config, "hugging_face")
        for name, layer in tensors_of(weights.config)
    }


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_read_as_it_was_written(tmp_path, kind, tied) -> None:
    weights = of_kind(kind, tie_embeddings=tied, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), rope_base=5e5)
    assert_same(open_hugging_face(model_directory(tmp_path, weights)), weights)


def test_types_may_differ_between_tensors_and_stay(tmp_path) -> None:
    weights = SmallWeights(kind=BFLOAT16, norm_kind=FLOAT32)
    assert_same(open_hugging_face(model_directory(tmp_path, weights)), weights)


def test_a_type_can_be_chosen(tmp_path) -> None:
    directory = model_directory(tmp_path, of_kind(FLOAT32), dtype=BFLOAT16)
    assert_same(open_hugging_face(directory), of_kind(BFLOAT16))
    assert json.loads((directory / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_value_that_does_not_fit_the_type_is_refused_by_name(tmp_path) -> None:
    class Large(SmallWeights):
        def read(self, name, layer):
            return super().read(name, layer) * np.float32(1e6)

    with pytest.raises(UserError, match=r"tensor model\.embed_tokens\.weight: has values too large for float16"):
        model_directory(tmp_path, Large(), dtype=FLOAT16)


def test_matrices_are_stored_as_out_by_in_and_not_reordered(tmp_path) -> None:
    file = open_safetensors(model_directory(tmp_path) / "model.safetensors")
    weights = of_kind(FLOAT32)
    row = next(name for name, _ in tensors_of(SMALL) if name.hugging_face.endswith("q_proj.weight"))
    assert file.read(Q)[5, 3] == weights.read(row, 1)[3, 5]


def test_a_large_model_is_written_in_shards_no_larger_than_asked_for(tmp_path) -> None:
    directory = model_directory(tmp_path, max_shard_bytes=5000)
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    arrays = state_dict(of_kind(FLOAT32))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert index["weight_map"].keys() == arrays.keys()
    for shard in shards:
        tensors = open_safetensors(directory / shard).tensors.values()
        assert sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in tensors) <= 5000
    assert_same(open_hugging_face(directory), of_kind(FLOAT32))


def test_what_travels_with_the_weights_is_kept_byte_for_byte(tmp_path) -> None:
    files = {"tokenizer_config.json": b'{"eos_token": "</s>"}', "chat_template.jinja": b"{{ x }}", "other": b"?"}
    weights = dataclasses.replace(of_kind(FLOAT32), files=files)
    kept = {name: content for name, content in files.items() if name != "other"}
    assert open_hugging_face(model_directory(tmp_path, weights)).files == kept


def test_a_tokenizer_is_written_as_transformers_reads_it_and_names_the_ids(tmp_path) -> None:
    tokenizer = train_tokenizer(["some text to learn a few pieces from, and a few more"] * 9, 280)
    weights = dataclasses.replace(of_kind(FLOAT32, vocab_size=280), files=tokenizer.files())
    directory = model_directory(tmp_path, weights)
    config = json.loads((directory / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert (directory / "tokenizer.json").exists()
    assert open_hugging_face(directory).files["tokenizer.model"] == tokenizer.to_bytes()


def test_files_that_transformers_wrote_are_left_as_they_are_but_for_the_class(tmp_path) -> None:
    """`LlamaTokenizer` would make a tokenizer of its own of the file."""
    tokenizer = train_tokenizer(["some text to learn a few pieces from, and a few more"] * 9, 280)
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "kept": 1, "add_bos_token": None}
    made = hugging_face_files(tokenizer) | {"tokenizer_config.json": json.dumps(config).encode()}
    weights = dataclasses.replace(of_kind(FLOAT32, vocab_size=280), files=made)
    found = dict(open_hugging_face(model_directory(tmp_path, weights)).files)
    written = json.loads(found.pop("tokenizer_config.json"))
    assert written == {"bos_token": "<s>", "eos_token": "</s>", "kept": 1, "tokenizer_class": "PreTrainedTokenizerFast"}
    assert found == {name: content for name, content in made.items() if name != "tokenizer_config.json"}


@needs_torch
@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_files_are_read(tmp_path, shards) -> None:
    import torch

    weights = of_kind(FLOAT32)
    directory = model_directory(tmp_path, weights)
    (directory / "model.safetensors").unlink()
    arrays = {name: torch.from_numpy(array) for name, array in state_dict(weights).items()}
    if shards == 1:
        torch.save(arrays, directory / "pytorch_model.bin")
    else:
        placed = {name: f"pytorch_model-{place % 2 + 1:05d}-of-00002.bin" for place, name in enumerate(arrays)}
        for home in set(placed.values()):
            torch.save({name: array for name, array in arrays.items() if placed[name] == home}, directory / home)
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    assert_same(open_hugging_face(directory), weights)


def replace_tensors(directory: Path, **changes: np.ndarray | None) -> None:
    """Write model.safetensors again with changed, added or (None) left out tensors."""
    arrays = state_dict(of_kind(FLOAT32)) | {name: array for name, array in changes.items() if array is not None}
    arrays = {name: array for name, array in arrays.items() if name not in changes or changes[name] is not None}
    described = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_safetensors(directory / "model.safetensors", described, lambda name: arrays[name])


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "left out"}))


def test_a_tied_model_may_carry_its_head_when_that_is_the_embedding(tmp_path) -> None:
    directory = model_directory(tmp_path)
    change_config(directory, tie_word_embeddings=True)
    replace_tensors(directory, **{HEAD: state_dict(of_kind(FLOAT32))[EMBEDDING]})
    assert_same(open_hugging_face(directory), of_kind(FLOAT32, tie_embeddings=True))


def test_tables_of_rotary_angles_are_ignored(tmp_path) -> None:
    directory = model_directory(tmp_path)
    replace_tensors(directory, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    assert_same(open_hugging_face(directory), of_kind(FLOAT32))


# Of meta-llama/Llama-3.1-8B, as transformers 4 and 5 write them.
LLAMA31 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SPELLINGS = {
    "transformers 4": {"rope_theta": 500000.0, "rope_scaling": SCALING | {"rope_type": "llama3"}, "head_dim": None},
    "older": {"rope_theta": 500000, "rope_scaling": SCALING | {"type": "llama3"}, "head_dim": 128},
    "transformers 5": {"rope_parameters": SCALING | {"rope_type": "llama3", "rope_theta": 500000.0}},
    "both": {
        "rope_theta": 500000.0,
        "rope_scaling": SCALING | {"rope_type": "llama3"},
        "rope_parameters": SCALING | {"rope_type": "llama3", "rope_theta": 500000.0},
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rotary_settings_are_read_in_every_spelling(spelling) -> None:
    config = architecture_from(LLAMA31 | SPELLINGS[spelling], "config.json")
    assert (config.rope_base, config.rope_scaling) == (500000.0, RopeScaling(8.0, 1.0, 4.0, 8192))
    assert (config.head_size, config.num_kv_heads, config.context_length) == (128, 8, 131072)


def test_what_a_config_leaves_out_is_what_transformers_assumes() -> None:
    needed = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    few = {name: LLAMA31[name] for name in (*needed, "num_attention_heads")}
    config = architecture_from(few | {"auto_map": {"AutoModel": "evil.Model"}, "pretraining_tp": 2}, "config.json")
    assert (config.num_kv_heads, config.head_size, config.norm_epsilon) == (32, 128, 1e-6)
    assert (config.rope_base, config.rope_scaling, config.tie_embeddings) == (10000.0, None, False)


def test_mistral_is_read_where_attention_has_no_window() -> None:
    config = architecture_from(LLAMA31 | {"model_type": "mistral", "sliding_window": None}, "config.json")
    assert config.num_kv_heads == 8


@pytest.mark.parametrize("scaling", [None, RopeScaling(32.0, 1.0, 4.0, 64)])
def test_a_config_that_is_written_is_read_again(scaling) -> None:
    config = dataclasses.replace(SMALL, rope_scaling=scaling, rope_base=1e5, head_size=6, norm_epsilon=1e-6)
    assert architecture_from(json.loads(json.dumps(config_values(config, FLOAT32, 1, [2]))), "") == config


def relink(directory: Path, name: str, target: str | Path) -> None:
    (directory / name).unlink()
    (directory / name).symlink_to(target)


def outside(directory: Path) -> Path:
    """The weights, moved to where the directory does not reach."""
    return (directory / "model.safetensors").rename(directory.parent / "elsewhere")


def write_index(directory: Path, **changes: object) -> None:
    """An index that says all tensors are in model-1.safetensors, with `changes`."""
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    placed = dict.fromkeys(state_dict(of_kind(FLOAT32)), "model-1.safetensors") | changes
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def fifo(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)


def tensor(name: str, array: np.ndarray | None) -> Callable[[Path], None]:
    return lambda directory: replace_tensors(directory, **{name: array})


def field(name: str, value: object) -> Callable[[Path], None]:
    return lambda directory: change_config(directory, **{name: value})


def text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def rope(kind: str, **more: object) -> Callable[[Path], None]:
    return field("rope_scaling", {"rope_type": kind, "factor": 2.0, **more})


NOT_WHOLE = "a whole number from 1 to 2\\^31 - 1"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda directory: (directory / "config.json").unlink(), "config.json: no such file"),
    "config cut short": (text("config.json", b'{"model_type": "lla'), "config.json: is not JSON: Unterminated string"),
    "config that is a list": (text("config.json", b"[]"), r"config.json: holds \[\] where a JSON object"),
    "config nested deeply": (text("config.json", b'{"a":' * 100_000), "config.json: is JSON nested too deeply"),
    "config of 2 MB": (text("config.json", b" " * 2**21), "config.json: is longer than 1048576 bytes"),
    "config with a key twice": (text("config.json", b'{"a": 1, "a": 2}'), "config.json: has the key 'a' twice"),
    "config with NaN": (text("config.json", b'{"rms_norm_eps": NaN}'), "config.json: has the value NaN"),
    "config with infinity": (text("config.json", b'{"rope_theta": 1e999}'), "config.json: has the number 1e999"),
    "config in UTF-16": (text("config.json", "{}".encode("utf-16")), "config.json: is not UTF-8"),
    "config that is a pipe": (lambda directory: fifo(directory, "config.json"), "config.json: is not a regular file"),
    "config that is a device": (lambda directory: relink(directory, "config.json", "/dev/zero"), "link out of its"),
    "another model": (field("model_type", "gpt2"), 'model_type is \'gpt2\'; "llama" or "mistral" is expected'),
    "no model type": (field("model_type", None), "lacks model_type"),
    "mistral with a window": (field("model_type", "mistral"), "lacks sliding_window, which is then 4096; only null"),
    "quantised": (field("quantization_config", {"quant_method": "gptq"}), "quantization_config is set"),
    "another activation": (field("hidden_act", "gelu"), "hidden_act is 'gelu'; \"silu\" is expected"),
    "biases of attention": (field("attention_bias", True), "attention_bias is True; false is expected"),
    "biases of the MLP": (field("mlp_bias", True), "mlp_bias is True; false is expected"),
    "linear scaling": (rope("linear"), 'rope_scaling: rope_type is \'linear\'; "default" or "llama3" is expected'),
    "dynamic scaling": (rope("dynamic"), "rope_type is 'dynamic'"),
    "yarn": (rope("yarn"), "rope_type is 'yarn'"),
    "longrope": (rope("longrope"), "rope_type is 'longrope'"),
    "scaling of no type": (field("rope_scaling", {"factor": 2.0}), "rope_scaling: lacks type"),
    "scaling without its fields": (rope("llama3"), "rope_scaling: lacks low_freq_factor"),
    "scaling that is a number": (field("rope_scaling", 2), "rope_scaling is 2; an object is expected"),
    "half of each head turned": (rope("default", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; 1.0"),
    "no width": (field("hidden_size", "left out"), "lacks hidden_size"),
    "width that is true": (field("hidden_size", True), f"hidden_size is True; {NOT_WHOLE}"),
    "width that is text": (field("hidden_size", "16"), f"hidden_size is '16'; {NOT_WHOLE}"),
    "width with a fraction": (field("hidden_size", 16.0), f"hidden_size is 16.0; {NOT_WHOLE}"),
    "negative vocabulary": (field("vocab_size", -1), f"vocab_size is -1; {NOT_WHOLE}"),
    "vocabulary of 10^9": (field("vocab_size", 10**9), r"embed_tokens.weight has shape \[40, 16\], the config"),
    "no layers": (field("num_hidden_layers", 0), f"num_hidden_layers is 0; {NOT_WHOLE}"),
    "10^9 layers": (field("num_hidden_layers", 10**9), "has 21 tensors, too few for num_layers 1000000000"),
    "10^18 layers": (field("num_hidden_layers", 10**18), f"num_hidden_layers is 1000000000000000000; {NOT_WHOLE}"),
    "heads of no size": (field("head_dim", 0), "head_dim is 0"),
    "heads of odd size": (field("head_dim", 3), "head_dim is 3; rotary positions turn pairs"),
    "heads that do not divide": (field("num_key_value_heads", 3), "num_key_value_heads is 3, which does not divide"),
    "more heads than width": (
        lambda directory: change_config(directory, num_attention_heads=32, head_dim=None),
        "num_attention_heads is 32, which does not divide hidden_size 16",
    ),
    "epsilon of zero": (field("rms_norm_eps", 0), "rms_norm_eps is 0; a number greater than 0"),
    "negative base": (field("rope_theta", -1.0), "rope_theta is -1.0; a number of at least 1"),
    "base of 400 digits": (field("rope_theta", 10**400), "rope_theta is 1000"),
    "tying that is a number": (field("tie_word_embeddings", 1), "tie_word_embeddings is 1; true or false"),
    "tied with another head": (field("tie_word_embeddings", True), "lm_head.weight differs from model.embed_tokens"),
    "tied scalars": (
        lambda directory: (
            change_config(directory, tie_word_embeddings=True),
            replace_tensors(directory, **{HEAD: np.zeros((), np.float32), EMBEDDING: np.zeros((), np.float32)}),
        ),
        r"embed_tokens.weight has shape \[\], the configuration asks for",
    ),
    "no weights": (lambda directory: (directory / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    "tensor missing": (tensor(Q, None), "lacks tensor model.layers.1.self_attn.q_proj.weight"),
    "tensor of another shape": (tensor(Q, np.zeros((4, 4), np.float32)), r"q_proj.weight has shape \[4, 4\]"),
    "tensor transposed": (tensor("lm_head.weight", np.zeros((16, 40), np.float32)), r"lm_head.weight has shape \[16"),
    "tensor of whole numbers": (tensor(Q, np.zeros((16, 16), np.int8)), "q_proj.weight has type int8; float32, float"),
    "tensor too many": (tensor("model.layers.0.self_attn.q_proj.bias", np.zeros(16, np.float32)), "q_proj.bias"),
    "tensor with NaN": (tensor(Q, np.full((16, 16), np.nan, np.float32)), "q_proj.weight has 256 non-finite values"),
    "index with a path": (lambda directory: write_index(directory, **{Q: "../elsewhere"}), "'../elsewhere' is not the"),
    "index from the root": (lambda directory: write_index(directory, **{Q: "/etc/passwd"}), "'/etc/passwd' is not the"),
    "index of the parent": (lambda directory: write_index(directory, **{Q: ".."}), "'..' is not the name"),
    "index with a zero byte": (lambda directory: write_index(directory, **{Q: "a\0b"}), r"'a\\x00b' is not the name"),
    "index of no file": (lambda directory: write_index(directory, **{Q: "model-2"}), "model-2: no such file"),
    "index of a number": (lambda directory: write_index(directory, **{Q: 2}), "index.json: weight_map is {"),
    "index that is no object": (
        lambda directory: (write_index(directory), text("model.safetensors.index.json", b"{}")(directory)),
        "index.json: weight_map is None",
    ),
    "index of a tensor that is not there": (
        lambda directory: write_index(directory, extra="model-1.safetensors"),
        "model-1.safetensors: lacks tensor 'extra', against what model.safetensors.index.json says",
    ),
    "index that leaves a tensor out": (
        lambda directory: (write_index(directory), change_index(directory, Q)),
        "model-1.safetensors: has tensor 'model.layers.1.self_attn.q_proj.weight', against what",
    ),
    "shard that is a pipe": (
        lambda directory: (write_index(directory, **{Q: "pipe"}), fifo(directory, "pipe")),
        "pipe: is not a regular file",
    ),
    "shard that is a directory": (
        lambda directory: (write_index(directory, **{Q: "folder"}), (directory / "folder").mkdir()),
        "folder: is not a regular file",
    ),
    "weights that are a link away": (
        lambda directory: (directory / "model.safetensors").symlink_to(outside(directory)),
        "model.safetensors: is a link out of its directory",
    ),
    "weights that are a link in circles": (
        lambda directory: relink(directory, "model.safetensors", "model.safetensors"),
        "model.safetensors: ",
    ),
    "weights that are a link to nothing": (
        lambda directory: relink(directory, "model.safetensors", "gone"),
        "model.safetensors: no such file",
    ),
    "tokenizer that is a link away": (
        lambda directory: (directory / "tokenizer.json").symlink_to("/etc/hostname"),
        "tokenizer.json: is a link out of its directory",
    ),
    "template of 2 MB": (text("chat_template.jinja", b" " * 2**21), "chat_template.jinja: is longer than 1048576"),
}


def change_index(directory: Path, left_out: str) -> None:
    path = directory / "model.safetensors.index.json"
    placed = json.loads(path.read_text())["weight_map"]
    del placed[left_out]
    path.write_text(json.dumps({"weight_map": placed}))


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_directory_is_refused_in_one_line(tmp_path, case) -> None:
    directory = model_directory(tmp_path)
    spoil, message = HOSTILE[case]
    spoil(directory)
    with pytest.raises(UserError, match=message) as raised:
        read_all(open_hugging_face(directory))
    assert str(raised.value).startswith(str(directory))
    assert re.fullmatch(r"[ -~]{1,500}", str(raised.value))


@needs_torch
def test_code_in_a_pytorch_file_is_not_run(tmp_path) -> None:
    import torch

    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/canary",)

    directory = model_directory(tmp_path)
    (directory / "model.safetensors").unlink()
    torch.save({Q: Canary()}, directory / "pytorch_model.bin")
    change_config(directory, trust_remote_code=True, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(UserError, match=r"asks for (posix|os)\.system, which weights do not need"):
        open_hugging_face(directory)
    assert not (tmp_path / "canary").exists()


def test_a_missing_directory_and_one_in_a_bucket_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="gone: no such directory"):
        open_hugging_face(tmp_path / "gone")
    with pytest.raises(UserError, match="gs://bucket/model: is in object storage; copy it"):
        open_hugging_face("gs://bucket/model")


@pytest.fixture
def offline_hub(tmp_path, monkeypatch) -> Path:
    """The directory of an empty cache of the hub; the hub itself is out of reach."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_model_in_the_cache_of_the_hub_is_found_and_its_links_are_followed(offline_hub) -> None:
    revision = "0123456789012345678901234567890123456789"
    home = offline_hub / "models--owner--small"
    for folder in ("refs", "blobs", "snapshots"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    model_directory(home / "snapshots").rename(home / "snapshots" / revision)
    for path in sorted((home / "snapshots" / revision).iterdir()):
        blob = path.rename(home / "blobs" / path.name.encode().hex())
        path.symlink_to(Path("../../blobs") / blob.name)
    assert_same(open_hugging_face(hub_directory("owner/small")), of_kind(FLOAT32))
    (home / "snapshots" / revision / "tokenizer.json").symlink_to("../../refs/main")
    with pytest.raises(UserError, match=r"tokenizer\.json: is a link out of its directory"):
        open_hugging_face(hub_directory("owner/small"))


def test_a_hub_out_of_reach_is_one_line(offline_hub) -> None:
    with pytest.raises(
        UserError, match="--model owner/model: could not be fetched from the Hugging Face hub: "
    ) as raised:
        hub_directory("owner/model")
    assert re.fullmatch(r"[ -~]{1,400}", str(raised.value))
