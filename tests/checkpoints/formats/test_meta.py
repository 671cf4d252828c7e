"""Meta's checkpoints: the rotary order proved by logits, parts put together bit by bit, broken ones refused."""

import dataclasses
import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_weights import BFLOAT16, FLOAT32, SMALL, SmallWeights, assert_same, logits, of_kind, read_all

from llama_jax.checkpoints.formats.meta import open_meta, write_meta
from llama_jax.checkpoints.formats.torch_files import TorchFile, write_torch
from llama_jax.checkpoints.formats.weights import ForeignWeights, Naming, foreign_weights, from_ours, tensors_of
from llama_jax.core.errors import UserError
from llama_jax.data.tokenizers import train_tokenizer
from llama_jax.model.config import LlamaConfig, RopeScaling

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
TOKENS = (np.arange(2 * 16).reshape(2, 16) ** 2 * 31 + 7) % SMALL.vocab_size
Arrays = Mapping[str, np.ndarray]


def meta_logits(tensors: Arrays, config: LlamaConfig, tokens: np.ndarray) -> np.ndarray:
    """A LLaMA as Meta's model.py has it: pairs of neighbours are complex numbers, turned by multiplication."""
    heads, size = config.num_heads, config.head_size
    frequencies = 1 / config.rope_base ** (np.arange(0, size, 2) / size)
    turns = np.exp(1j * np.outer(np.arange(tokens.shape[1]), frequencies))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * tensors[name]

    def turned(x: np.ndarray) -> np.ndarray:
        pairs = x.reshape(*x.shape[:-1], size // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turns[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    def softmax(x: np.ndarray) -> np.ndarray:
        exponentials = np.exp(x - x.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    future = np.triu(np.full((tokens.shape[1],) * 2, -np.inf), 1)
    x = tensors["tok_embeddings.weight"].astype(np.float64)[tokens]
    for layer in range(config.num_layers):
        weight = {part: tensors[f"layers.{layer}.{part}.weight"].T.astype(np.float64) for part in MATRICES}
        h = norm(x, f"layers.{layer}.attention_norm.weight")
        query, key, value = (
            (h @ weight[f"attention.w{part}"]).reshape(*tokens.shape, -1, size).astype(np.float64) for part in "qkv"
        )
        query, key = turned(query), turned(key)
        key, value = (np.repeat(part, heads // config.num_kv_heads, axis=2) for part in (key, value))
        scores = np.einsum("btnh,bsnh->bnts", query, key) / math.sqrt(size) + future
        mixed = np.einsum("bnts,bsnh->btnh", softmax(scores), value).reshape(*tokens.shape, -1)
        x = x + mixed @ weight["attention.wo"]
        h = norm(x, f"layers.{layer}.ffn_norm.weight")
        gate = h @ weight["feed_forward.w1"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weight["feed_forward.w3"])) @ weight["feed_forward.w2"]
    return norm(x, "norm.weight") @ tensors["output.weight"].T


MATRICES = (*(f"attention.w{part}" for part in "qkvo"), *(f"feed_forward.w{part}" for part in (1, 2, 3)))


def stored(naming: Naming) -> dict[str, np.ndarray]:
    """Random tensors, named as in a format, with no regard to its rotary order: whatever they are is the model."""
    draw = np.random.default_rng(1)
    return {
        getattr(name, naming).format(layer): draw.standard_normal(
            name.shape(SMALL)[:: -1 if name.transposed else 1]
        ).astype(np.float32)
        * np.float32(0.3)
        for name, layer in tensors_of(SMALL)
    }


def read_as(naming: Naming) -> ForeignWeights:
    tensors = stored(naming)
    described = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    return foreign_weights("small", SMALL, {}, naming, described, tensors.__getitem__)


def test_logits_are_those_of_interleaved_rotary_attention() -> None:
    found = logits(read_as("meta"), TOKENS)
    expected = meta_logits(stored("meta"), SMALL, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_without_the_reordering_the_logits_are_others() -> None:
    """The same numbers, read as if q and k were in the order of Hugging Face."""
    found = logits(read_as("hugging_face"), TOKENS)
    assert np.abs(found - meta_logits(stored("meta"), SMALL, TOKENS)).max() > 0.1


def meta_directory(parent: Path, weights: SmallWeights | None = None, **how: Any) -> Path:
    pytest.importorskip("torch")
    directory = parent / "model"
    directory.mkdir()
    write_meta(directory, weights or of_kind(FLOAT32), **how)
    return directory


@needs_torch
def test_a_directory_gives_the_logits_of_interleaved_rotary_attention(tmp_path) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in stored("meta").items()}, tmp_path / FIRST)
    write_params(tmp_path, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, norm_eps=1e-5, multiple_of=24, vocab_size=-1)
    change_params(tmp_path, ffn_dim_multiplier=0.5)
    found = logits(open_meta(tmp_path), TOKENS)
    np.testing.assert_allclose(found, meta_logits(stored("meta"), SMALL, TOKENS), atol=1e-5, rtol=0)


LLAMA3: dict[str, Any] = {"rope_base": 500000.0, "context_length": 8192}
LLAMA31: dict[str, Any] = {"rope_base": 500000.0, "context_length": 131072, "rope_scaling": RopeScaling()}
GENERATIONS: dict[str, dict[str, Any]] = {
    "LLaMA 1": {"norm_epsilon": 1e-6, "num_kv_heads": 4},
    "Llama 2": {"context_length": 4096},
    "Code Llama": {"rope_base": 1e6, "context_length": 16384},
    "Llama 3": LLAMA3,
    "Llama 3.1": LLAMA31,
    "Llama 3.2": LLAMA31 | {"rope_scaling": RopeScaling(factor=32.0), "tie_embeddings": True},
    "tied": {"tie_embeddings": True, "context_length": 4096},
    "wide MLP": {"mlp_width": 100, "context_length": 4096},
    "narrow MLP": {"mlp_width": 2, "context_length": 4096},
}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
def test_a_model_is_read_as_it_was_written(tmp_path, generation, shards, kind) -> None:
    weights = of_kind(kind, **GENERATIONS[generation])
    assert_same(open_meta(meta_directory(tmp_path, weights, shards=shards)), weights)


@pytest.mark.parametrize("llama3", [True, False])
def test_ranks_hold_the_parts_that_metas_code_expects(tmp_path, llama3) -> None:
    """Output features split by rows, input features by columns; the table by token since Llama 3, before by feature."""
    weights = of_kind(FLOAT32, **(LLAMA3 if llama3 else {}))
    directory = meta_directory(tmp_path, weights, shards=2)
    whole = {
        name.meta.format(layer): from_ours(name, weights.read(name, layer), SMALL, "meta")
        for name, layer in tensors_of(SMALL)
    }
    second = TorchFile(directory / "consolidated.01.pth")
    assert second.tensors.keys() == whole.keys()
    rows = ("wq", "wk", "wv", "w1", "w3", "output", *(["tok_embeddings"] if llama3 else []))
    for name, array in whole.items():
        expected = array
        if name.split(".")[-2] in rows:
            expected = array[len(array) // 2 :]
        elif array.ndim == 2:
            expected = array[:, array.shape[1] // 2 :]
        assert np.array_equal(second.read(name), expected), name


def test_params_say_nothing_that_the_code_of_llama_1_does_not_know(tmp_path) -> None:
    directory = meta_directory(tmp_path, of_kind(FLOAT32, num_kv_heads=4, mlp_width=64))
    known = {"dim", "n_layers", "n_heads", "vocab_size", "multiple_of", "norm_eps"}
    assert json.loads((directory / "params.json").read_text()).keys() == known


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"norm_eps": 1e-5, "rope_theta": 1000000}, 16384),
        ({"norm_eps": 1e-5, "rope_theta": 500000}, 8192),
        ({"norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True}, 131072),
        ({"norm_eps": 1e-5, "max_seq_len": 512}, 512),
    ],
)
def test_the_context_length_is_that_of_the_generation(tmp_path, params, expected) -> None:
    directory = meta_directory(tmp_path)
    change_params(directory, **params)
    assert open_meta(directory).config.context_length == expected


def test_tables_of_rotary_angles_are_ignored(tmp_path) -> None:
    directory = meta_directory(tmp_path)
    replace_tensors(directory, **{"rope.freqs": np.ones(2, np.float32)})
    assert_same(open_meta(directory), of_kind(FLOAT32), but={"context_length": 4096})


@pytest.mark.parametrize("beside", [True, False])
def test_a_tokenizer_in_the_directory_or_above_it_comes_along(tmp_path, beside) -> None:
    directory = meta_directory(tmp_path)
    ((directory if beside else tmp_path) / "tokenizer.model").write_bytes(b"a tokenizer")
    assert open_meta(directory).files == {"tokenizer.model": b"a tokenizer"}


def test_what_travels_with_the_weights_is_kept_byte_for_byte(tmp_path) -> None:
    tokenizer = train_tokenizer(["some text to learn a few pieces from, and a few more"] * 9, 280)
    files = {**tokenizer.files(), "generation_config.json": b"{}"}
    directory = meta_directory(tmp_path, dataclasses.replace(of_kind(FLOAT32, vocab_size=280), files=files))
    assert open_meta(directory).files == files


UNWRITABLE: dict[str, tuple[dict[str, Any], int, str]] = {
    "heads of their own size": (
        {"head_size": 6},
        1,
        "--format meta: has no field for head_size 6; it must be width 16",
    ),
    "another scaling": ({"rope_scaling": RopeScaling(4.0)}, 1, "--format meta: has no field for RopeScaling"),
    "more ranks than heads": ({}, 4, "--shards 4: does not divide num_kv_heads 2"),
    "an odd vocabulary": ({"vocab_size": 41}, 2, "--shards 2: does not divide vocab_size 41"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_metas_code_cannot_run_is_not_written(tmp_path, case) -> None:
    changes, shards, message = UNWRITABLE[case]
    with pytest.raises(UserError, match=message):
        meta_directory(tmp_path, of_kind(FLOAT32, **changes), shards=shards)
    assert not list((tmp_path / "model").iterdir())


FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"
GATE, NORM, TABLE = "layers.0.feed_forward.w1.weight", "layers.1.ffn_norm.weight", "tok_embeddings.weight"


def write_params(directory: Path, **values: object) -> None:
    (directory / "params.json").write_text(json.dumps(values))


def change_params(directory: Path, **changes: object) -> None:
    write_params(directory, **(json.loads((directory / "params.json").read_text()) | changes))


def replace_tensors(directory: Path, file: str = FIRST, **changes: np.ndarray | None) -> None:
    """Write one of the files again with changed, added or (None) left out tensors."""
    old = TorchFile(directory / file)
    arrays = {name: old.read(name) for name in old.tensors} | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    described = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_torch(directory / file, described, lambda name: arrays[name])


def tensor(name: str, array: np.ndarray | None, file: str = FIRST) -> Callable[[Path], None]:
    return lambda directory: replace_tensors(directory, file, **{name: array})


def param(name: str, value: object) -> Callable[[Path], None]:
    return lambda directory: change_params(directory, **{name: value})


def move(name: str, target: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).rename(directory / target)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


NOT_WHOLE = "a whole number from 1 to 2\\^31 - 1"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no params": (lambda directory: (directory / "params.json").unlink(), "params.json: no such file"),
    "params cut short": (
        lambda directory: (directory / "params.json").write_text('{"dim"'),
        "params.json: is not JSON",
    ),
    "params that are a list": (
        lambda directory: (directory / "params.json").write_text("[]"),
        r"params.json: holds \[",
    ),
    "params of 2 MB": (lambda directory: (directory / "params.json").write_text(" " * 2**21), "is longer than 1048576"),
    "params that are a pipe": (
        lambda directory: ((directory / "params.json").unlink(), os.mkfifo(directory / "params.json")),
        "params.json: is not a regular file",
    ),
    "no width": (param("dim", None), "params.json: lacks dim"),
    "width that is true": (param("dim", True), f"dim is True; {NOT_WHOLE}"),
    "another width": (param("dim", 24), "make 48 rows, layers.0.feed_forward.w1.weight has 24"),
    "negative layers": (param("n_layers", -1), f"n_layers is -1; {NOT_WHOLE}"),
    "10^9 layers": (param("n_layers", 10**9), "has 21 tensors, too few for num_layers 1000000000"),
    "a layer less": (param("n_layers", 1), "has 9 tensors that do not fit the configuration"),
    "heads that do not divide the width": (param("n_heads", 3), "n_heads is 3; dim 16 does not split"),
    "heads of odd size": (param("n_heads", 16), "n_heads is 16; dim 16 does not split"),
    "heads that do not divide": (param("n_kv_heads", 3), "n_kv_heads is 3, which does not divide n_heads 4"),
    "fewer heads than stored": (param("n_kv_heads", 1), r"wk.weight has shape \[8, 16\], the configuration asks for"),
    "another vocabulary": (param("vocab_size", 41), "vocab_size is not that of tok_embeddings.weight, which has 40"),
    "vocabulary that is text": (param("vocab_size", "40"), "vocab_size is not that of tok_embeddings.weight"),
    "another multiple": (param("multiple_of", 7), "dim, multiple_of and ffn_dim_multiplier make"),
    "negative multiplier": (param("ffn_dim_multiplier", -1), "ffn_dim_multiplier is -1; a number greater than 0"),
    "no epsilon": (param("norm_eps", None), "lacks norm_eps, a number greater than 0"),
    "base of zero": (param("rope_theta", 0), "rope_theta is 0; a number greater than 0"),
    "base of next to nothing": (param("rope_theta", 1e-300), "rope_theta is 1e-300; a number of at least 1"),
    "scaling that is a number": (param("use_scaled_rope", 8), "use_scaled_rope is 8; true or false"),
    "no weights": (
        lambda directory: [(directory / name).unlink() for name in (FIRST, SECOND)],
        r"lacks consolidated.00.pth; it has no consolidated.\*.pth",
    ),
    "first rank missing": (lambda directory: (directory / FIRST).unlink(), "lacks consolidated.00.pth; it has cons"),
    "a rank between missing": (
        move(SECOND, "consolidated.02.pth"),
        "lacks consolidated.01.pth; it has consolidated.00",
    ),
    "second rank missing": (lambda directory: (directory / SECOND).unlink(), "make 24 rows, .* has 12"),
    "weights cut short": (
        lambda directory: (directory / SECOND).write_bytes((directory / SECOND).read_bytes()[:-50]),
        "consolidated.01.pth: is not a whole file of torch.save",
    ),
    "weights that are a link away": (
        lambda directory: (move(FIRST, "../elsewhere")(directory), (directory / FIRST).symlink_to("../elsewhere")),
        "consolidated.00.pth: is a link out of its directory",
    ),
    "weights that are a pipe": (
        lambda directory: ((directory / FIRST).unlink(), os.mkfifo(directory / FIRST)),
        "consolidated.00.pth: is not a regular file",
    ),
    "tensor of one rank only": (tensor("extra", zeros(2)), "consolidated.01.pth: tensor extra is not as in consol"),
    "tensor missing in one rank": (tensor(GATE, None, SECOND), f"consolidated.01.pth: tensor {GATE} is not as in"),
    "ranks of different shapes": (tensor(NORM, zeros(8)), f"consolidated.01.pth: tensor {NORM} is not as in"),
    "ranks of different types": (tensor(NORM, np.zeros(16, np.float16)), f"tensor {NORM} is not as in"),
    "norms that differ": (tensor(NORM, zeros(16)), f"consolidated.01.pth: tensor {NORM} differs from that in"),
    "tensor with NaN": (tensor("output.weight", np.full((20, 16), np.nan, np.float32)), "output.weight has 320 non-f"),
    "no table": (
        lambda directory: [replace_tensors(directory, name, **{TABLE: None}) for name in (FIRST, SECOND)],
        "consolidated.00.pth: lacks tok_embeddings.weight, or it is not a matrix",
    ),
    "table of one axis": (
        lambda directory: [replace_tensors(directory, name, **{TABLE: zeros(16)}) for name in (FIRST, SECOND)],
        "consolidated.00.pth: lacks tok_embeddings.weight, or it is not a matrix",
    ),
    "matrix of no axis": (
        lambda directory: [
            replace_tensors(directory, name, **{"layers.0.attention.wo.weight": zeros()}) for name in (FIRST, SECOND)
        ],
        r"layers.0.attention.wo.weight has shape \[\], the configuration asks for \[16, 16\]",
    ),
    "weights of eight bits": (
        lambda directory: [int8_weights(directory, name) for name in (FIRST, SECOND)],
        f"tensor {GATE} has type int8",
    ),
    "tokenizer above that is a link away": (
        lambda directory: (directory.parent / "tokenizer.model").symlink_to("/etc/hostname"),
        "tokenizer.model: is a link out of its directory",
    ),
}


def int8_weights(directory: Path, file: str) -> None:
    import torch

    tensors = torch.load(directory / file, weights_only=True)
    torch.save(tensors | {GATE: tensors[GATE].to(torch.int8)}, directory / file)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_directory_is_refused_in_one_line(tmp_path, case) -> None:
    directory = meta_directory(tmp_path, shards=2)
    spoil, message = HOSTILE[case]
    spoil(directory)
    with pytest.raises(UserError, match=message) as raised:
        read_all(open_meta(directory))
    assert str(raised.value).startswith(str(tmp_path))
    assert re.fullmatch(r"[ -~]{1,500}", str(raised.value))


@needs_torch
def test_code_in_a_checkpoint_is_not_run(tmp_path) -> None:
    import torch

    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/canary",)

    directory = meta_directory(tmp_path)
    torch.save({TABLE: Canary()}, directory / FIRST)
    with pytest.raises(UserError, match=r"asks for (posix|os)\.system, which weights do not need"):
        open_meta(directory)
    assert not (tmp_path / "canary").exists()
