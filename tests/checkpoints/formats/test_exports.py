"""What is written in another format is the model whose logits transformers computed: the recorded ones everywhere, and
those of transformers itself where it is installed."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
import pytest
from etils import epath
from formula_weights import BASE, ORACLE, SHAPES, TOKENS, FormulaWeights
from small_weights import logits

from llama_jax.checkpoints.formats.gguf import write_gguf
from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.formats.meta import write_meta
from llama_jax.checkpoints.formats.orbax import write_orbax
from llama_jax.checkpoints.formats.weights import Weights
from llama_jax.checkpoints.opening import ModelReference, open_params
from llama_jax.checkpoints.weight_reading import open_weights
from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.layout import decoding_params
from llama_jax.model.config import ComputeConfig, LlamaConfig

RECORDED = np.load(ORACLE / "transformers_logits.npz")

WRITERS: Mapping[str, Callable[[epath.Path, Weights], object]] = {
    "orbax": lambda target, weights: write_orbax(target, weights, dtype=None),
    "hf": lambda target, weights: write_hugging_face(target, weights),
    "meta": lambda target, weights: write_meta(target, weights, shards=1),
    "gguf": lambda target, weights: write_gguf(target, weights),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_has_the_logits_of_transformers(tmp_path, kind, shape) -> None:
    if kind == "meta":
        pytest.importorskip("torch")
        if shape == "llama3.1_rope":
            pytest.skip("Meta's params.json can only tell Llama 3's own scaling")
    target = epath.Path(tmp_path) / "model"
    if kind in ("hf", "meta"):
        target.mkdir()
    WRITERS[kind](target, FormulaWeights(LlamaConfig.from_json(BASE | SHAPES[shape])))
    opened = open_weights(str(target), step=None, say=print)
    np.testing.assert_allclose(logits(opened, TOKENS), RECORDED[shape], atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_opens_the_export_and_computes_and_writes_the_same(tmp_path, shape) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_hugging_face(tmp_path, FormulaWeights(LlamaConfig.from_json(BASE | SHAPES[shape])))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with torch.no_grad(), jax.set_mesh(mesh):
        ours = open_params(ModelReference(str(tmp_path)), ComputeConfig(), say=print)
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
        found = ours.model.logits(ours.params, jax.numpy.asarray(TOKENS))
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        prompt = TOKENS[0, :20].tolist()
        written = theirs.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False, eos_token_id=None)
        greedy = SamplingConfig(max_new_tokens=100, temperature=0.0)
        engine = Engine(ours.model, decoding_params(ours.model, ours.params), slots=1, length=128)
        (answer,) = engine.run([Request(prompt, greedy)])
        assert [token.id for token in answer] == written[0, 20:].tolist()
