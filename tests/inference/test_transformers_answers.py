"""The engine writes what Hugging Face transformers writes, and finds it as likely, raw and as sampled, by numbers that
`tests/oracle/record_answers.py` recorded."""

import numpy as np
import pytest
from formula_weights import BASE, ORACLE, SHAPES, FormulaWeights
from small_answers import MODEL, NEW_TOKENS, PROMPTS, SETTINGS, TOP
from small_weights import params_of

from llama_jax.inference.config import SamplingConfig
from llama_jax.inference.engine import Engine, Request
from llama_jax.inference.layout import decoding_params
from llama_jax.model.config import ComputeConfig, LlamaConfig
from llama_jax.model.llama import language_model

RECORDED = np.load(ORACLE / "transformers_answers.npz")


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = LlamaConfig.from_json(BASE | SHAPES[MODEL])
    model = language_model(config, ComputeConfig())
    layers = decoding_params(model, params_of(FormulaWeights(config)))
    return Engine(model, layers, slots=4, row_counts=(4,))


def test_greedy_answers_and_their_log_probabilities_are_those_of_transformers(engine) -> None:
    sampling = SamplingConfig(NEW_TOKENS, temperature=0.0)
    answers = engine.run([Request(prompt, sampling, top_logprobs=TOP) for prompt in PROMPTS])
    for number, answer in enumerate(answers):
        assert [token.id for token in answer] == RECORDED[f"greedy_{number}"].tolist()
        found = [token.logprob for token in answer]
        np.testing.assert_allclose(found, RECORDED[f"logprobs_{number}"], atol=1e-4, rtol=0)
        assert [[id for id, _ in token.top] for token in answer] == RECORDED[f"top_{number}"].tolist()
        found = [[logprob for _, logprob in token.top] for token in answer]
        np.testing.assert_allclose(found, RECORDED[f"top_logprobs_{number}"], atol=1e-4, rtol=0)


def test_the_distributions_sampled_from_are_those_of_transformers(engine) -> None:
    """After each token that transformers drew, ours is drawn, and must be as likely there."""
    for name, settings in SETTINGS.items():
        ids, shaped = RECORDED[f"ids_{name}"].tolist(), RECORDED[f"shaped_{name}"]
        prompts = [[*PROMPTS[-1], *ids[:place]] for place in range(NEW_TOKENS)]
        sampling = SamplingConfig(1, **settings)
        requests = [Request(prompt, sampling, number=number, top_logprobs=0) for number, prompt in enumerate(prompts)]
        answers = engine.run(requests)
        drawn = [answer[0].id for answer in answers]
        found = [answer[0].sampled_logprob for answer in answers]
        np.testing.assert_allclose(found, shaped[np.arange(NEW_TOKENS), drawn], atol=1e-4, rtol=0, err_msg=name)
