"""The better of two answers is what a reward model scores higher at its end, or a language model finds more likely: as
by one plain forward pass over each answer alone."""

import dataclasses
import json

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tokenizers import byte_level_file
from small_weights import SMALL, SmallWeights, params_of

from llama_jax.checkpoints.formats.hugging_face import write_hugging_face
from llama_jax.checkpoints.reward_normalization import NORMALIZATION_FILE, RewardNormalization
from llama_jax.data.instructions.records import Turn
from llama_jax.data.instructions.templates import Layout
from llama_jax.data.tokenizers import tokenizer_from_files
from llama_jax.model.config import ComputeConfig
from llama_jax.model.llama import language_model

FILES = {
    "tokenizer.json": byte_level_file(),
    "tokenizer_config.json": b'{"bos_token": "<|bos|>", "eos_token": "<|eos|>"}',
}
PAIRS = [
    ("Who had a mill?", "the miller", "the cat and the donkey"),
    ("What was left for the youngest son?", "the cat", "grain"),
    ("When?", "in 1812, the sons had to grind", "never"),
    ("Who ground?", "the mice", "away with the flour"),
    ("Name one", "same", "same"),
]


def config_of(*, scalar_head: bool):
    return dataclasses.replace(SMALL, vocab_size=400, scalar_head=scalar_head)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model and a reward model with one tokenizer, and pairs."""
    made = tmp_path_factory.mktemp("preference")
    scale = {NORMALIZATION_FILE: RewardNormalization(2.0, 1.0).to_json()}
    for name, files in {"language": FILES, "reward": FILES | scale}.items():
        (made / name).mkdir()
        write_hugging_face(made / name, SmallWeights(config_of(scalar_head=name == "reward"), files=files))
    records = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    (made / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return made


def measured(capfd, folder, name: str, *settings: object) -> tuple[dict, str]:
    """The result, and what is said while it is found."""
    ask = ("--task", "preference", "--model", folder / name, "--data", folder / "pairs.jsonl")
    assert command_runs.call("evaluate", *ask, *settings, "--json") == 0, capfd.readouterr().err
    said = capfd.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.err


def plain_outputs(name: str, use) -> np.ndarray:
    """`use` of the ids of each answer after its prompt, the place where it begins, and what the model gives."""
    model = language_model(config_of(scalar_head=name == "reward"), ComputeConfig())
    params, layout = params_of(SmallWeights(model.config)), Layout("auto", tokenizer_from_files(FILES, "here"))
    hidden = jax.jit(model.hidden)

    def one(prompt: str, answer: str) -> float:
        ids, learned = layout.encode((Turn("user", prompt), Turn("assistant", answer)), "here")
        read = np.zeros((1, 256), np.int32)
        read[0, : len(ids)] = ids
        return use(model, params, ids, learned.index(True), hidden(params, jnp.asarray(read))[:, : len(ids)])

    return np.array([[one(prompt, answer) for answer in answers] for prompt, *answers in PAIRS[:4]])


def test_a_reward_model_is_right_where_it_scores_the_end_of_the_better_answer_higher(folder, tmp_path, capfd) -> None:
    expected = plain_outputs(
        "reward", lambda model, params, ids, begin, hidden: float(model.scores(params, hidden)[0, -1])
    )
    found, said = measured(capfd, folder, "reward", "--output", tmp_path / "found.json", "--batch_size", 2)
    samples = [json.loads(line) for line in (tmp_path / "found.samples.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([sample["scores"] for sample in samples], expected, atol=1e-5)
    assert (samples[0]["chosen"], samples[0]["rejected"]) == PAIRS[0][1:] and PAIRS[0][0] in samples[0]["prompt"]
    assert found["accuracy"] == (expected[:, 0] > expected[:, 1]).mean()
    assert found["reward_margin"] == pytest.approx((expected[:, 0] - expected[:, 1]).mean(), abs=1e-5)
    # Of the four pairs the better answer has fewer tokens in the first and the fourth, more in the others.
    lengths = np.array([sample["tokens"] for sample in samples])
    longer = (lengths[:, 0] > lengths[:, 1]).mean()
    assert found["length_accuracy"] == max(longer, 1 - longer)
    assert found["reward_normalization"] == {"gain": 2.0, "bias": 1.0}
    assert (found["documents"], found["dropped_records"]) == (4, {"equal": 1})
    assert "fewer than 20 examples tell nothing" in said and found["verdict"]["believed"] is False


@pytest.mark.slow
def test_a_language_model_is_right_where_it_finds_the_better_answer_more_likely(folder, capfd) -> None:
    lengths = []

    def logprob(model, params, ids, begin, hidden) -> float:
        every = jax.nn.log_softmax(model.unembed(model.head(params), hidden[0]))
        lengths.append(len(ids) - begin)
        return float(every[np.arange(begin - 1, len(ids) - 1), np.array(ids[begin:])].sum())

    expected = plain_outputs("language", logprob)
    found, _ = measured(capfd, folder, "language", "--batch_size", 2)
    assert found["accuracy"] == (expected[:, 0] > expected[:, 1]).mean()
    per_token = expected / np.reshape(lengths, (4, 2))
    assert found["accuracy_per_token"] == (per_token[:, 0] > per_token[:, 1]).mean()
    assert 0 < found["accuracy_stderr"] < 1 or found["accuracy"] in (0, 1)
    limited, _ = measured(capfd, folder, "language", "--batch_size", 2, "--limit", 1)
    assert limited["documents"] == 1 and limited["accuracy"] == float(expected[0, 0] > expected[0, 1])


WRONG = {
    "nothing": (["--data", "absent.jsonl"], "error: --data: no file or directory absent.jsonl"),
    "no pairs": (
        ["--data", "texts.jsonl"],
        "--data: texts.jsonl: records have text; wanted: pairs have chosen and rej",
    ),
    "no run": ([], "--data: needed, only a run that learned from preferences has held-out pairs of its own"),
    "perplexity": (["--task", "perplexity", "--data", "pydoc"], "reward: is a reward model, which scores answers and"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_measured_is_said_in_one_line(folder, monkeypatch, capfd, case) -> None:
    monkeypatch.chdir(folder)
    (folder / "texts.jsonl").write_text('{"text": "a"}\n')
    settings, message = WRONG[case]
    assert command_runs.call("evaluate", "--task", "preference", "--model", "reward", *settings) == 2
    assert message in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_whoever_writes_text_is_told_that_a_reward_model_writes_none(folder, capfd, command) -> None:
    assert command_runs.call(command, "--model", folder / "reward") == 2
    message = "is a reward model, which scores answers and writes none; evaluate --task preference measures it"
    assert message in capfd.readouterr().err.splitlines()[-1]
