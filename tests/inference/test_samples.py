"""Answers to fixed prompts, step by step."""

import json

import jax
from small_tokenizers import llama2c_file

from llama_jax.core.config import MeshConfig
from llama_jax.core.mesh import make_mesh
from llama_jax.core.run_directory import RunDirectory
from llama_jax.data.instructions.loader import Prompt
from llama_jax.data.tokenizers import Llama2cTokenizer
from llama_jax.inference.samples import Samples
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model


def test_each_step_is_there_once_also_when_a_run_is_killed_before_its_first_checkpoint(tmp_path):
    tokenizer = Llama2cTokenizer(llama2c_file([(b" ", 0.0)]))
    model = language_model(LlamaConfig(384, 8, 8, 1, 2, 2, 4, 256), ComputeConfig())
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        params = jax.jit(model.init)(jax.random.key(0))
        # The first life ends without a checkpoint, the second with one at step 4, where the third begins.
        for first, taken, expected in ((0, [0, 4], [0, 4]), (0, [0, 4, 8], [0, 4, 8]), (4, [8], [0, 4, 8])):
            samples = Samples(model, tokenizer, [Prompt("a", [5, 6])], 2, (2,))
            samples.begin(RunDirectory(tmp_path), first)
            for step in taken:
                samples.take(step, params)
            lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
            assert [line["step"] for line in lines] == expected
    assert lines[0]["samples"] == lines[2]["samples"]
