"""Perplexity counts every held-out token once, whatever the batch and the mesh, in the units it says."""

import math

import jax
import jax.numpy as jnp
import pytest

from llama_jax.core import sharding
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.data.config import DataConfig
from llama_jax.data.rows.loader import text_bytes, validation_batches
from llama_jax.data.sources.documents import TextDocuments
from llama_jax.data.tokenizers import train_tokenizer
from llama_jax.evals.perplexity import window_samples, windows, word_perplexity
from llama_jax.evals.scoring import Scorer
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model
from llama_jax.runs.held_out import perplexity

TEXTS = [f"Document {number} says that {number} times two is {2 * number}, and no more. " * 4 for number in range(40)]
DOCUMENTS = TextDocuments(TEXTS)
TOKENIZER = train_tokenizer(TEXTS, 300)
CONFIG = LlamaConfig(300, width=32, mlp_width=32, num_layers=1, num_heads=2, num_kv_heads=2, head_size=16)
MODEL = language_model(CONFIG, ComputeConfig())


def measured(rows: int, shape: tuple[int, ...], uniform: bool = False) -> dict:
    mesh = make_mesh(MeshConfig(*shape))
    with jax.set_mesh(mesh):
        shardings = sharding.shardings_of(mesh, MODEL.shapes(), MODEL.axes)
        params = jax.jit(MODEL.init, out_shardings=shardings)(jax.random.key(0))
        if uniform:
            params["lm_head"]["kernel"] = jnp.zeros_like(params["lm_head"]["kernel"])
        batches = validation_batches(DOCUMENTS, TOKENIZER, DataConfig(sequence_length=64), rows)
        return perplexity(MODEL, params, batches, text_bytes(DOCUMENTS))


def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary() -> None:
    result = measured(8, (1, 8), uniform=True)
    tokens = sum(len(TOKENIZER.encode(text, eos=True)) for text in TEXTS)
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(math.log(300), rel=1e-6)
    assert result["perplexity"] == pytest.approx(300, rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(tokens * math.log2(300) / sum(map(len, TEXTS)), rel=1e-6)


@pytest.mark.slow
def test_batch_size_and_mesh_change_nothing() -> None:
    first = measured(8, (1, 8))
    for rows, shape in ((16, (2, 2, 1, 2)), (24, (8, 1, 1))):
        again = measured(rows, shape)
        assert again["tokens"] == first["tokens"]
        assert again["loss"] == pytest.approx(first["loss"], rel=1e-6)


def test_windows_score_every_token_once_with_enough_context() -> None:
    found = list(windows(range(100, 111), length=4, stride=2))  # ten tokens after the first
    assert [(list(before), list(scored)) for before, scored in found] == [
        ([100], [101, 102, 103, 104]),
        ([102, 103, 104], [105, 106]),
        ([104, 105, 106], [107, 108]),
        ([106, 107, 108], [109, 110]),
    ]
    (last,) = list(windows(range(3), length=8, stride=8))
    assert [list(part) for part in last] == [[0], [1, 2]]


def test_a_window_as_long_as_the_documents_gives_the_loss_of_whole_documents() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.jit(MODEL.init)(jax.random.key(0))
        whole = [TextDocuments([text]) for text in TEXTS[:3]]
        batches = [next(validation_batches(text, TOKENIZER, DataConfig(sequence_length=256), 1)) for text in whole]
        expected = perplexity(MODEL, params, batches, 1)
        scorer = Scorer(MODEL, params, rows=2, context_length=256)
        samples = dict(window_samples(dict(enumerate(TEXTS[:3])), TOKENIZER, scorer, length=256, stride=256))
    assert sum(sample["tokens"] for sample in samples.values()) == expected["tokens"]
    nats = sum(sample["nats"] for sample in samples.values())
    assert nats / expected["tokens"] == pytest.approx(expected["loss"], rel=1e-6)
    assert samples[0]["words"] == len(TEXTS[0].split())
    assert word_perplexity(expected, 50) == pytest.approx(math.exp(nats / 50), rel=1e-5)
