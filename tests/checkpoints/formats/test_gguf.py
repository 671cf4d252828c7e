"""GGUF files keep every bit of the weights, mean the same model to llama.cpp's conventions, and are refused when they
ask for what LLaMA here does not have."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from small_weights import BFLOAT16, SMALL, SmallWeights, assert_same, logits, of_kind, read_all

from llama_jax.checkpoints.formats import gguf as gguf_module
from llama_jax.checkpoints.formats.gguf import open_gguf, write_gguf
from llama_jax.checkpoints.formats.weights import tensors_of
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import Tokenizer, tokenizer_from_files, train_tokenizer
from llama_jax.model.config import LlamaConfig, RopeScaling

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
WIDE = dataclasses.replace(SMALL, width=64, mlp_width=96, head_size=16)
LLAMA31 = dataclasses.replace(
    SMALL, head_size=16, rope_base=500000.0, context_length=131072, rope_scaling=RopeScaling(), norm_epsilon=1e-6
)
QUANTISED = [kind for kind in gguf.GGMLQuantizationType if hasattr(gguf.quants, kind.name) and kind.name != "BF16"]


def write(path: Path, weights: SmallWeights, **options: Any) -> Path:
    write_gguf(path, weights, **options)
    return path


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, tie_embeddings=True),
        dataclasses.replace(SMALL, num_kv_heads=4, rope_base=1e6, norm_epsilon=1e-6, context_length=77),
        LLAMA31,
    ],
    ids=["grouped", "tied", "multi-head", "llama 3.1"],
)
def test_a_float32_model_comes_back_bit_by_bit(tmp_path: Path, config: LlamaConfig) -> None:
    weights = SmallWeights(config)
    assert_same(open_gguf(write(tmp_path / "model.gguf", weights)), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(("kind", "name"), [(FLOAT16, "F16"), (BFLOAT16, "BF16"), (FLOAT32, "F32")], ids=str)
def test_without_a_type_matrices_stay_as_stored_and_vectors_become_float32(tmp_path, kind, name) -> None:
    weights = of_kind(kind)
    opened = open_gguf(write(tmp_path / "model.gguf", weights))
    for parameter, layer in tensors_of(SMALL):
        array, expected = opened.read(parameter, layer), weights.read(parameter, layer)
        assert array.dtype == opened.dtype(parameter) == (FLOAT32 if expected.ndim == 1 else kind)
        assert np.array_equal(array.astype(kind), expected)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", name}


@pytest.mark.parametrize(("dtype", "file_type"), [("F32", 0), ("F16", 1), ("BF16", 32), ("Q8_0", 7)])
def test_the_library_reads_the_same_names_shapes_and_values(tmp_path, dtype, file_type) -> None:
    weights = SmallWeights(WIDE)
    opened = open_gguf(write(tmp_path / "model.gguf", weights, dtype=dtype))
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert len(reader.tensors) == len(list(tensors_of(WIDE)))
    for tensor in reader.tensors:
        assert tensor.tensor_type.name == ("F32" if len(tensor.shape) == 1 else dtype)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = opened.read_tensor(tensor.name)
        assert ours.shape == tuple(tensor.shape[::-1]) and np.array_equal(ours.astype(np.float32), values)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": file_type,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": 40,
        "tokenizer.ggml.model": "none",
    }
    assert {key: fields[key] for key in expected} == expected


def test_q8_0_is_within_half_a_step_of_the_weights(tmp_path) -> None:
    weights = SmallWeights(WIDE)
    write_gguf(tmp_path / "model.gguf", weights, dtype="Q8_0")
    opened = open_gguf(tmp_path / "model.gguf")
    for name, layer in tensors_of(WIDE):
        step = np.abs(weights.read(name, layer)).max() / 127
        # Half a step by rounding the weight, 1/16 by rounding the step to float16.
        assert np.abs(opened.read(name, layer) - weights.read(name, layer)).max() <= 0.57 * step
        assert opened.dtype(name) == FLOAT32


def test_matrices_that_q8_0_cannot_hold_are_float16(tmp_path) -> None:
    config = dataclasses.replace(WIDE, mlp_width=72)  # rows of w2; 72 is not a multiple of 32
    write_gguf(tmp_path / "model.gguf", SmallWeights(config), dtype="Q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    halves = {name for name, kind in types.items() if kind == "F16"}
    assert halves == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"} and types["blk.0.ffn_up.weight"] == "Q8_0"
    read_all(open_gguf(tmp_path / "model.gguf"))


def test_a_value_too_large_for_float16_is_named_and_leaves_no_file(tmp_path) -> None:
    class Large(SmallWeights):
        def read(self, name, layer):
            return super().read(name, layer) + (70000 if name.gguf == "output.weight" else 0)

    (tmp_path / "model.gguf").write_bytes(b"the old file")
    with pytest.raises(UserError, match=r"model\.gguf: tensor output\.weight has values up to 7000.*write F32 or BF16"):
        write_gguf(tmp_path / "model.gguf", Large(), dtype="F16")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == b"the old file"


def test_a_bucket_is_refused_as_a_target() -> None:
    with pytest.raises(UserError, match=r"gs://bucket/model\.gguf: GGUF is written to local files only"):
        write_gguf("gs://bucket/model.gguf", SmallWeights())


def test_the_missing_package_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    write(tmp_path / "model.gguf", SmallWeights())
    monkeypatch.setitem(sys.modules, "gguf", None)
    for act in (lambda: open_gguf(tmp_path / "model.gguf"), lambda: write_gguf(tmp_path / "b.gguf", SmallWeights())):
        with pytest.raises(UserError, match=r"need the package gguf: pip install 'llama_jax\[gguf\]'"):
            act()


def test_one_tensor_at_a_time_is_read_while_writing(tmp_path) -> None:
    """The file has grown by the tensors before when the next one is asked for."""
    sizes: list[int] = []

    class Watched(SmallWeights):
        def read(self, name, layer):
            sizes.append((tmp_path / "model.gguf.tmp").stat().st_size)
            return super().read(name, layer)

    write_gguf(tmp_path / "model.gguf", Watched(dataclasses.replace(SMALL, mlp_width=4096)))
    assert len(sizes) == len(list(tensors_of(SMALL))) and sizes[-1] > 0.8 * (tmp_path / "model.gguf").stat().st_size


def llama_cpp_logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    """A LLaMA written from llama.cpp's graph: rotary pairs are neighbours, their frequencies divided by `rope_freqs`.
    Float64, one row of tokens, from what the library reads."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    value: Callable[[str], Any] = lambda key: reader.fields[f"llama.{key}"].contents()  # noqa: E731
    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    size, epsilon = value("rope.dimension_count"), value("attention.layer_norm_rms_epsilon")
    pairs = np.arange(size // 2)
    frequencies = value("rope.freq_base") ** (-2.0 * pairs / size) / tensors.get("rope_freqs.weight", np.ones(1))
    angles = np.arange(len(tokens))[:, None, None] * frequencies

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * tensors[f"{name}.weight"]

    def turned(x: np.ndarray) -> np.ndarray:
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        out[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return out

    x = tensors["token_embd.weight"][tokens]
    hidden = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for layer in range(value("block_count")):
        matrix: Callable[[str], np.ndarray] = lambda name, layer=layer: tensors[f"blk.{layer}.{name}.weight"].T  # noqa: E731
        y = norm(x, f"blk.{layer}.attn_norm")
        query = turned((y @ matrix("attn_q")).reshape(-1, heads, size))
        key = turned((y @ matrix("attn_k")).reshape(-1, kv_heads, size)).repeat(heads // kv_heads, 1)
        values = (y @ matrix("attn_v")).reshape(-1, kv_heads, size).repeat(heads // kv_heads, 1)
        scores = np.einsum("tnh,snh->nts", query, key) / size**0.5 + hidden
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), values)
        x = x + mixed.reshape(len(tokens), -1) @ matrix("attn_output")
        y = norm(x, f"blk.{layer}.ffn_norm")
        gate = y @ matrix("ffn_gate")
        x = x + (gate / (1 + np.exp(-gate)) * (y @ matrix("ffn_up"))) @ matrix("ffn_down")
    return norm(x, "output_norm") @ tensors.get("output.weight", tensors["token_embd.weight"]).T


@pytest.mark.parametrize(
    "config", [SMALL, dataclasses.replace(LLAMA31, tie_embeddings=True)], ids=["rope", "llama 3.1"]
)
def test_the_file_means_the_same_model_to_llama_cpp(tmp_path, config) -> None:
    """Wrong order of q and k, wrong divisors or a wrong orientation would show in the logits at once."""
    tokens = np.arange(300) ** 2 * 7 % config.vocab_size
    weights = SmallWeights(config)
    expected = llama_cpp_logits(write(tmp_path / "model.gguf", weights), tokens)
    np.testing.assert_allclose(logits(weights, tokens[None])[0, :, : config.vocab_size], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_every_type_is_dequantised_as_the_library_does_it(tmp_path, kind, monkeypatch) -> None:
    """Any bytes are a tensor of a quantised type; those of a few rows are dequantised at a time."""
    monkeypatch.setattr(gguf_module, "_DEQUANTISED_BYTES", 700)
    config = dataclasses.replace(SMALL, width=256, mlp_width=256, head_size=64, vocab_size=5, num_layers=1)
    reader = gguf.GGUFReader(write(tmp_path / "float.gguf", SmallWeights(config)))
    row = gguf.quants.quant_shape_to_byte_shape((256,), kind)[0]
    random = np.random.default_rng(0)
    raw = {
        tensor.name: random.integers(0, 256, (int(tensor.shape[1]), row), np.uint8)
        for tensor in reader.tensors
        if len(tensor.shape) == 2
    }
    path = rewritten(tmp_path / "float.gguf", tensors={name: (kind, data) for name, data in raw.items()})
    opened = open_gguf(path)
    with np.errstate(all="ignore"):
        for name, data in raw.items():
            array = opened.read_tensor(name)
            expected = gguf.quants.dequantize(data, kind)
            assert array.dtype == np.float32 and np.array_equal(array, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_files_that_the_library_quantised_are_close_to_the_weights(tmp_path, name) -> None:
    weights, kind = SmallWeights(WIDE), gguf.GGMLQuantizationType[name]
    reader = gguf.GGUFReader(write(tmp_path / "float.gguf", weights))
    matrices = {tensor.name: tensor.data for tensor in reader.tensors if len(tensor.shape) == 2}
    quantised = {name: (kind, gguf.quants.quantize(data, kind)) for name, data in matrices.items()}
    opened = open_gguf(rewritten(tmp_path / "float.gguf", tensors=quantised))
    for parameter, layer in tensors_of(WIDE):
        array = weights.read(parameter, layer)
        # The largest error is a whole step: that of a value opposite to the largest one.
        step = np.abs(array).max() * 2 / 2 ** int(name[1])
        assert np.abs(opened.read(parameter, layer) - array).max() < 1.1 * step


def rewritten(
    path: Path, *, keys: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, without: str = ""
) -> Path:
    """The file with keys (text, whole number, real, list or flag) and tensors (an array, or type and bytes) put in
    place of its own, and one key or tensor left out."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("rewritten.gguf"), "llama")
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
    for key, value in (values | (keys or {})).items():
        writer.kv_data[0].pop(key, None)
        if key != without:
            add.get(type(value), writer.add_array)(key, value)
    for name, data in ({tensor.name: tensor.data for tensor in reader.tensors} | (tensors or {})).items():
        kind, data = data if isinstance(data, tuple) else (None, data)
        if name != without:
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("rewritten.gguf")


REFUSED = {
    "another architecture": ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2', only 'llama'"),
    "architecture a number": ({"general.architecture": 7}, "general.architecture is 7; expected a string"),
    "layers a string": ({"llama.block_count": "two"}, "llama.block_count is 'two'; expected a whole number"),
    "layers a flag": ({"llama.block_count": True}, "llama.block_count is True; expected a whole number"),
    "10^9 layers": ({"llama.block_count": 10**9}, "too few for num_layers 1000000000"),
    "no layers": ({"llama.block_count": 0}, "model.num_layers: 0 must be greater than 0"),
    "one layer of two": (
        {"llama.block_count": 1},
        "has 9 tensors that do not fit the configuration: blk.1.",
    ),
    "no heads": ({"llama.attention.head_count": 0}, "model.num_heads: 0 must be greater than 0"),
    "heads that no group divides": ({"llama.attention.head_count_kv": 3}, "is not divisible by model.num_kv_heads 3"),
    "heads that differ": ({"llama.attention.head_count_kv": [2, 4]}, "head_count_kv is array([2, 4], dtype=int32)"),
    "another width": ({"llama.embedding_length": 2**31}, "tensor token_embd.weight has shape [40, 16]"),
    "another vocabulary": ({"llama.vocab_size": 41}, "tensor token_embd.weight has shape [40, 16]"),
    "values of another size": ({"llama.attention.value_length": 8}, "llama.attention.value_length is 8, only heads of"),
    "part of a head turned": ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count is 2, only heads of one"),
    "epsilon not a number": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "expected a finite number"),
    "base 0": ({"llama.rope.freq_base": 0.0}, "model.rope_base: 0.0 must be greater than 0"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8; mixtures of experts are not read"),
    "linear scaling": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        "rotary positions scaled by 'linear' (4) are not read",
    ),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "rotary positions scaled by 'yarn'"),
    "two factors": (
        {"llama.rope.scaling.factor": 1.0, "llama.rope.scale_linear": 2.0},
        "llama.rope.scaling.factor is 1.0, but llama.rope.scale_linear is 2.0; they must be the same",
    ),
    "a factor alone": ({"llama.rope.scaling.factor": 2.0}, "rotary positions scaled by 'linear' (2) are not read"),
    "one of several files": ({"split.count": 3}, "is one of 3 parts; join them with llama-gguf-split --merge"),
    "another tokenizer": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; only 'llama' and 'gpt2'"),
    "no tokens": ({"tokenizer.ggml.model": "gpt2"}, "lacks the key tokenizer.ggml.tokens"),
    "too few tokens": (
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"] * 39},
        "tokenizer.ggml.tokens has 39 tokens, the model 40",
    ),
    "too few scores": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["a"] * 40,
            "tokenizer.ggml.scores": [0.0] * 39,
        },
        "expected 40 numbers of kind floating",
    ),
    "a score that is no number": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["a"] * 40,
            "tokenizer.ggml.scores": [0.0] * 39 + [float("nan")],
        },
        "expected nothing but finite numbers",
    ),
    "a type of token that is not known": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["a"] * 40,
            "tokenizer.ggml.token_type": [1] * 39 + [-1],
        },
        "tokenizer.ggml.token_type of token 39 is -1; 1 to 6 are known",
    ),
    "the same token twice": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["a"] * 40,
            "tokenizer.ggml.scores": [0.0] * 40,
        },
        "tokenizer: token 'a' occurs 40 times",
    ),
    "a token that is not there": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["a"] * 40,
            "tokenizer.ggml.scores": [0.0] * 40,
            "tokenizer.ggml.bos_token_id": 40,
        },
        "tokenizer.ggml.bos_token_id is 40; expected one of the 40 tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_is_not_ours_is_refused_in_one_line(tmp_path, name) -> None:
    keys, message = REFUSED[name]
    path = rewritten(write(tmp_path / "model.gguf", SmallWeights()), keys=keys)
    with pytest.raises(UserError) as error:
        open_gguf(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("llama.context_length", "lacks the key llama.context_length"),
        ("llama.attention.layer_norm_rms_epsilon", "lacks the key llama.attention.layer_norm_rms_epsilon"),
        ("token_embd.weight", "lacks tensor token_embd.weight"),
        ("blk.1.ffn_gate.weight", "lacks tensor blk.1.ffn_gate.weight"),
    ],
)
def test_what_is_missing_is_named(tmp_path, without, message) -> None:
    path = rewritten(write(tmp_path / "model.gguf", SmallWeights()), without=without)
    with pytest.raises(UserError, match=message):
        open_gguf(path)


@pytest.mark.parametrize(
    "without",
    [
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
        "llama.rope.freq_base",
        "llama.vocab_size",
        "tokenizer.ggml.model",
    ],
)
def test_keys_that_old_files_lack_have_llama_cpps_defaults(tmp_path, without) -> None:
    path = rewritten(write(tmp_path / "model.gguf", SmallWeights()), without=without)
    assert open_gguf(path).config == SMALL


@pytest.mark.parametrize(
    "keys",
    [
        {"scaling.type": "none", "scaling.factor": 4.0},
        {"scaling.type": "linear", "scaling.factor": 1.0},
        {"scaling.factor": 1.0, "scale_linear": 1.0},
        {"scale_linear": 0.0},
    ],
    ids=str,
)
def test_a_scaling_that_does_nothing_is_none(tmp_path, keys) -> None:
    keys = {f"llama.rope.{key}": value for key, value in keys.items()}
    assert open_gguf(rewritten(write(tmp_path / "model.gguf", SmallWeights()), keys=keys)).config == SMALL


def test_one_number_for_each_layer_is_read_when_all_are_equal(tmp_path) -> None:
    keys = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [24, 24]}
    assert open_gguf(rewritten(write(tmp_path / "model.gguf", SmallWeights()), keys=keys)).config == SMALL


def test_tensors_of_no_llama_are_refused(tmp_path) -> None:
    write(tmp_path / "model.gguf", SmallWeights())
    bias = {"blk.0.attn_q.bias": np.zeros(16, np.float32)}
    with pytest.raises(UserError, match=r"has 1 tensors that do not fit the configuration: blk\.0\.attn_q\.bias"):
        open_gguf(rewritten(tmp_path / "model.gguf", tensors=bias))
    integers = {"output_norm.weight": np.zeros(16, np.int32)}
    with pytest.raises(UserError, match=r"tensor output_norm\.weight has type I32, which cannot be dequantised"):
        open_gguf(rewritten(tmp_path / "model.gguf", tensors=integers))


def test_a_value_that_is_not_finite_is_refused_when_it_is_read(tmp_path) -> None:
    norm = np.ones(16, np.float32)
    norm[3] = np.nan
    path = rewritten(write(tmp_path / "model.gguf", SmallWeights()), tensors={"blk.1.ffn_norm.weight": norm})
    opened = open_gguf(path)
    with pytest.raises(UserError, match=r"rewritten\.gguf: tensor blk\.1\.ffn_norm\.weight has 1 non-finite"):
        read_all(opened)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path) -> None:
    opened = open_gguf(write(tmp_path / "model.gguf", SmallWeights()))
    with (tmp_path / "model.gguf").open("r+b") as file:
        file.truncate((tmp_path / "model.gguf").stat().st_size - 1000)
    with pytest.raises(UserError, match=r"model\.gguf: ended within tensor \S+ while it was read"):
        read_all(opened)


def converters_divisors(base: float, size: int, factor: float) -> np.ndarray:
    """As llama.cpp's converter makes them for Llama 3.1 (low 1, high 4, original context 8192)."""
    divisors = []
    for pair in range(size // 2):
        wavelength = 2 * np.pi * base ** (2 * pair / size)
        smooth = (8192 / wavelength - 1) / 3
        divisors.append(
            1 if wavelength < 2048 else factor if wavelength > 8192 else 1 / ((1 - smooth) / factor + smooth)
        )
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0, 16.0])
def test_llama_31s_divisors_are_known_and_written_as_llama_cpp_writes_them(tmp_path, factor) -> None:
    config = dataclasses.replace(LLAMA31, rope_scaling=None, head_size=128)
    divisors = converters_divisors(500000.0, 128, factor)
    write(tmp_path / "model.gguf", SmallWeights(config))
    opened = open_gguf(rewritten(tmp_path / "model.gguf", tensors={"rope_freqs.weight": divisors}))
    assert opened.config == dataclasses.replace(config, rope_scaling=RopeScaling(factor=factor))
    write_gguf(tmp_path / "again.gguf", opened)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "again.gguf").tensors}
    np.testing.assert_allclose(tensors["rope_freqs.weight"], divisors, rtol=1e-6)
    assert open_gguf(tmp_path / "again.gguf").config == opened.config


def test_a_scaling_of_another_context_comes_back(tmp_path) -> None:
    scaling = RopeScaling(factor=4.0, original_context_length=2048)
    config = dataclasses.replace(LLAMA31, rope_scaling=scaling)
    assert open_gguf(write(tmp_path / "model.gguf", SmallWeights(config))).config == config


@pytest.mark.parametrize(
    ("divisors", "message"),
    [
        (np.full(2, 2.0), "is not a scaling of Llama 3.1's kind"),
        (np.array([1.0, np.nan]), "is not a scaling of Llama 3.1's kind"),
        (np.zeros(2), "is not a scaling of Llama 3.1's kind"),
        (np.ones(3), r"has shape \[3\], not half the head size"),
    ],
)
def test_other_divisors_are_refused(tmp_path, divisors, message) -> None:
    tensors = {"rope_freqs.weight": divisors.astype(np.float32)}
    with pytest.raises(UserError, match=rf"tensor rope_freqs\.weight {message}"):
        open_gguf(rewritten(write(tmp_path / "model.gguf", SmallWeights()), tensors=tensors))


TEXTS = [
    "Once upon a time there was a small fox.",
    "The fox ran up the hill; then it slept.",
    "  Ünïcode  déjà vu 🦊\n",
]


def test_a_sentencepiece_tokenizer_travels_with_the_model(tmp_path) -> None:
    """The table has room for more tokens than the tokenizer knows, which is no business of the tokenizer's."""
    files = train_tokenizer(TEXTS * 20, 300).files()
    files |= {"tokenizer_config.json": b'{"chat_template": "{{ messages }}", "add_bos_token": true}'}
    weights = SmallWeights(dataclasses.replace(SMALL, vocab_size=304), files=files)
    opened = open_gguf(write(tmp_path / "model.gguf", weights))
    assert_same_tokenizer(tokenizer_from_files(opened.files, "gguf"), tokenizer_from_files(files, "source"))
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].data) == 304
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == "[PAD303]"
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [2, 3, 3, 6]
    assert fields["tokenizer.ggml.unknown_token_id"].contents() == 0
    (tmp_path / "again").mkdir()
    write_gguf(tmp_path / "again" / "model.gguf", opened)
    assert (tmp_path / "again" / "model.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_a_byte_level_tokenizer_travels_with_the_model(tmp_path) -> None:
    """Made here of keys, as files of Llama 3's kind have them; read, written and read again."""
    letters = list(bytes_to_characters())
    merges = ["t h", "th e", "Ġ the", "f o", "fo x"]
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]
    tokens = letters + [merge.replace(" ", "") for merge in merges] + special
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 4) + [3] * 4,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 261,
        "tokenizer.ggml.eos_token_id": 262,
        "tokenizer.ggml.eot_token_id": 263,
        "tokenizer.ggml.eom_token_id": 264,
        "tokenizer.chat_template": "{{ bos_token }}",
    }
    weights = SmallWeights(dataclasses.replace(SMALL, vocab_size=len(tokens)))
    opened = open_gguf(rewritten(write(tmp_path / "model.gguf", weights), keys=keys))
    tokenizer = tokenizer_from_files(opened.files, "gguf")
    assert tokenizer.encode("the fox the", bos=True) == [261, 257, letters.index("Ġ"), 260, 258]
    assert tokenizer.encode("<|eot_id|>") != [263] == tokenizer.encode("<|eot_id|>", special=True)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (261, 262, (262, 263, 264))
    assert tokenizer.adds_bos and tokenizer.chat_template == "{{ bos_token }}"
    again = open_gguf(write(tmp_path / "again.gguf", opened))
    assert_same_tokenizer(tokenizer_from_files(again.files, "again"), tokenizer)
    fields = gguf.GGUFReader(tmp_path / "again.gguf").fields
    assert {key: fields[key].contents() for key in keys} == keys


def assert_same_tokenizer(left: Tokenizer, right: Tokenizer) -> None:
    for text in TEXTS:
        ids = right.encode(text)
        assert left.encode(text) == ids and left.decode(ids) == right.decode(ids)
    for field in ("vocab_size", "bos_id", "eos_id", "stop_ids", "adds_bos", "chat_template", "special_tokens"):
        assert getattr(left, field) == getattr(right, field), field


def bytes_to_characters() -> list[str]:
    """GPT-2's printable character of each byte."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
