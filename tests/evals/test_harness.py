"""Our model answers lm-evaluation-harness as our own scorer and decoding do."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from llama_jax.core.errors import UserError
from llama_jax.evals.answers import Answerer
from llama_jax.evals.harness import LlamaJaxLM, harness_results
from llama_jax.evals.scoring import Scorer, encode_pair, request_of
from llama_jax.inference.config import SamplingConfig


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


@pytest.fixture
def lm(small, one_device) -> LlamaJaxLM:
    return LlamaJaxLM(small.model, one_device, small.tokenizer, rows=2)


def test_likelihoods_are_those_of_the_scorer(lm, small, one_device) -> None:
    pairs = [("Document 7 says", " that"), ("Document 7 says ", "that 7"), ("", "no more")]
    found = lm.loglikelihood(instances("loglikelihood", *pairs))
    scorer = Scorer(small.model, one_device, rows=2, context_length=64)
    scores = dict(scorer.scores([encode_pair(small.tokenizer, *pair) for pair in pairs]))
    assert found == [(scores[number].logprob, scores[number].greedy) for number in range(3)]
    assert lm.counts == {"requests": 3, "truncated": 0}


def test_a_long_text_is_scored_in_windows_each_token_once(lm, small, one_device) -> None:
    text = "Document 7 says that 7 times two is 14, and no more. " * 12
    ids = small.tokenizer.encode(text)
    assert len(ids) > 128
    scorer = Scorer(small.model, one_device, rows=2, context_length=64)
    whole = [small.tokenizer.bos_id, *ids]
    # Full windows do not overlap; the last one is as long as the others and scores only what is left.
    left = (len(ids) - 1) % 64 + 1
    cuts = [(n, n + 1, n + 65) for n in range(0, len(ids) - left, 64)]
    cuts.append((len(whole) - 65, len(whole) - left, len(whole)))
    scores = dict(scorer.scores([request_of(whole[a:b], whole[b:c]) for a, b, c in cuts]))
    assert sum(score.tokens for score in scores.values()) == len(ids)
    (found,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    assert found == pytest.approx(sum(score.logprob for score in scores.values()), rel=1e-6)


def test_answers_end_where_the_task_says(lm, small, one_device) -> None:
    prompts = ["Document 7", "no and no more"]
    answerer = Answerer(small.model, one_device, small.tokenizer, rows=2, context_length=64)
    ids = [small.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    whole = dict(answerer.answers(ids, SamplingConfig(6, temperature=0.0), ()))
    stop = whole[0].text[2:5]
    asked = [(prompts[0], {"until": [stop], "max_gen_toks": 6}), (prompts[1], {"until": "\n\n", "max_gen_toks": 6})]
    found = lm.generate_until(instances("generate_until", *asked))
    assert found == [whole[0].text.partition(stop)[0], whole[1].text.partition("\n\n")[0]]


def test_a_task_of_a_local_file_gives_the_accuracy_of_the_scores(lm, small, one_device, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [{"q": f"{n} times two is", "choices": [f"{2 * n}", "7", "no more"], "gold": n % 3} for n in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: gold\n"
        "doc_to_choice: choices\nmetric_list: [{metric: acc}]\n"
    )
    result = harness_results(lm, ["sums"], include_path=str(tmp_path), num_fewshot=None, limit=None)
    scorer = Scorer(small.model, one_device, rows=2, context_length=64)
    right = 0
    for question in questions:
        pairs = [encode_pair(small.tokenizer, question["q"], f" {choice}") for choice in question["choices"]]
        scores = dict(scorer.scores(pairs))
        right += max(scores, key=lambda number: scores[number].logprob) == question["gold"]
    assert result["results"]["sums"]["acc,none"] == pytest.approx(right / 6)
    assert result["documents"] == 6
    assert lm.counts["requests"] == 18


@pytest.mark.slow  # the harness reads thousands of task files
def test_an_unknown_task_is_named(lm, tmp_path) -> None:
    with pytest.raises(UserError, match="lm_eval:hellaswagg: the harness has no such task; did you mean 'hellaswag'"):
        harness_results(lm, ["hellaswagg"], include_path=str(tmp_path), num_fewshot=None, limit=None)


def test_no_torch_is_needed() -> None:
    program = "import sys, llama_jax.evals.harness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
