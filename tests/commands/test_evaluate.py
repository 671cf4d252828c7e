"""Evaluations by the real command: what they report, that they go on where they stopped, and what they read."""

import json
import shutil
from pathlib import Path

import command_runs
import pytest
from sweeps import some

CHOICES = [
    {"question": f"What follows {n}?", "choices": ["zero", f"{n + 1}", "a list"], "answer": n % 3} for n in range(12)
]
PASSAGES = [{"text": f"The function returns a list of the values in the dictionary number {n}"} for n in range(6)]
PROBLEMS = [{"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(4)]
INSTRUCTIONS = [{"instruction": "Return the value.", "input": "", "output": f"the value {n}"} for n in range(3)]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    records = {"choices": CHOICES, "passages": PASSAGES, "problems": PROBLEMS}
    for name, content in records.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in content))
    (tmp_path / "instructions.json").write_text(json.dumps(INSTRUCTIONS))
    return tmp_path


def evaluated(capfd, *arguments: object) -> dict:
    assert command_runs.call("evaluate", *arguments, "--json") == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out.strip().splitlines()[-1])


def samples(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_multiple_choice_reports_what_its_samples_say(tiny_run, data, capfd) -> None:
    ask = ("--model", tiny_run, "--task", "multiple_choice", "--data", "choices.jsonl")
    result = evaluated(capfd, *ask, "--output", "result.json")
    written = samples(data / "result.samples.jsonl")
    assert result["accuracy"] == sum(sample["accuracy"] for sample in written) / 12
    assert (result["documents"], result["requests"], result["truncated"], result["skipped"]) == (12, 36, 0, 0)
    assert json.loads((data / "result.json").read_text()) == result
    assert result["config"]["task"] == "multiple_choice"
    assert len(result["model_fingerprint"]) == len(result["tokenizer_fingerprint"]) == 64
    best = [max(range(3), key=lambda n, s=sample: s["logprobs"][n]) for sample in written]
    assert [int(n == sample["gold"]) for n, sample in zip(best, written, strict=True)] == [
        sample["accuracy"] for sample in written
    ]


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on(tiny_run, data, capfd) -> None:
    ask = ("--model", tiny_run, "--task", "multiple_choice", "--data", "choices.jsonl", "--output", "result.json")
    whole = evaluated(capfd, *ask)
    kept = samples(data / "result.samples.jsonl")
    with pytest.MonkeyPatch.context() as patch:  # as if it were killed before the end
        patch.setattr("llama_jax.evals.kept_samples.KeptSamples.close", lambda self: None)
        evaluated(capfd, *ask)
    # A sample that could not come from computing it again.
    partial = data / "result.json.partial.jsonl"
    key, *lines = partial.read_text().splitlines(keepends=True)
    changed = json.loads(lines[3]) | {"accuracy_per_character": 100}
    partial.write_text("".join([key, *lines[:3], json.dumps(changed) + "\n"]))
    capfd.readouterr()
    assert command_runs.call("evaluate", *ask) == 0
    assert "resuming after 4 documents" in capfd.readouterr().out
    again = json.loads((data / "result.json").read_text())
    number = changed["document"]
    difference = (100 - kept[number]["accuracy_per_character"]) / 12
    assert again["accuracy_per_character"] == pytest.approx(whole["accuracy_per_character"] + difference)
    assert not partial.exists()


@pytest.mark.parametrize("windows", some([(), ("--stride", 32)], default=[()]))
def test_what_is_measured_are_the_documents_that_can_be_used(tiny_run, data, capfd, windows) -> None:
    good = [json.dumps(record).encode() for record in PASSAGES]
    bad = [b'{"text": "caf\xe9"}', b'{"txet": "no text"}', b'{"text": null}', b'{"text": "", "n": 1}']
    (data / "good.jsonl").write_bytes(b"\n".join(good))
    (data / "mixed.jsonl").write_bytes(b"\n".join([*bad[:2], *good[:4], bad[2], *good[4:], bad[3]]))
    ask = ("--model", tiny_run, "--sequence_length", 64, *windows)
    expected = evaluated(capfd, *ask, "--data", "good.jsonl")
    found = evaluated(capfd, *ask, "--data", "mixed.jsonl", "--max_bad_fraction", 0.4)
    assert expected["dropped_records"] == {} and expected["documents"] == 6
    assert found["dropped_records"] == {"not_utf8": 1, "missing_field": 1, "null_field": 1, "empty": 1}
    for name in ("documents", "tokens", "bytes", "zlib_bits_per_byte"):
        assert found[name] == expected[name]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    first = evaluated(capfd, *ask, "--data", "mixed.jsonl", "--limit", 3, "--max_bad_fraction", 0.4)
    assert (first["documents"], first["dropped_records"]) == (3, {"not_utf8": 1, "missing_field": 1})


def test_records_that_cannot_be_used_are_counted_and_named(tiny_run, data, capfd) -> None:
    lines = [json.dumps(record) for record in CHOICES]
    lines[3:3] = ['{"question": ', json.dumps(CHOICES[0] | {"answer": "D"}), json.dumps(PASSAGES[0])]
    lines.append(json.dumps(CHOICES[1] | {"answer": -1}))  # not bad: as hidden test sets have it
    (data / "mixed.jsonl").write_text("\n".join(lines))
    ask = ("--model", tiny_run, "--task", "multiple_choice", "--max_bad_fraction", 0.25, "--data", "mixed.jsonl")
    result = evaluated(capfd, *ask)
    assert (result["documents"], result["requests"], result["skipped"]) == (12, 36, 1)
    assert result["dropped_records"] == {"not_json": 1, "wrong_form": 2}
    assert command_runs.call("evaluate", *ask) == 0
    said = capfd.readouterr().out
    assert "bad record skipped: mixed.jsonl:5: field 'answer' is 'D', which names none of the 3 choices" in said
    assert "1 records have no answer, bad records left out: 2 wrong_form, 1 not_json, accuracy" in said


def test_examples_are_taken_from_the_data_or_from_other_data(tiny_run, data, capfd) -> None:
    ask = ("--model", tiny_run, "--task", "multiple_choice", "--data", "choices.jsonl", "--output", "result.json")

    def logprobs(*examples: object) -> list[list[float]]:
        evaluated(capfd, *ask, *examples)
        return [sample["logprobs"] for sample in samples(data / "result.samples.jsonl")]

    alone, first = logprobs(), logprobs("--num_fewshot", 1)
    assert len(first) == 11
    assert all(with_example != without for with_example, without in zip(first, alone[1:], strict=True))
    (data / "example.jsonl").write_text(json.dumps(CHOICES[0]) + "\n")
    from_file = logprobs("--num_fewshot", 1, "--fewshot_data", "example.jsonl")
    assert len(from_file) == 12
    for one, other in zip(first, from_file[1:], strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_last_words_are_scored(tiny_run, data, capfd) -> None:
    result = evaluated(capfd, "--model", tiny_run, "--task", "last_word", "--data", "passages.jsonl", "--limit", 4)
    assert (result["documents"], result["requests"]) == (4, 4)
    assert result["perplexity"] > 1
    assert {"accuracy", "accuracy_stderr", "perplexity_stderr", "seconds", "programs"} <= result.keys()


@pytest.mark.slow
def test_answers_are_written_for_people_to_read(tiny_run, data, capfd) -> None:
    ask = ("--model", tiny_run, "--max_new_tokens", 24, "--batch_size", 8, "--output", "result.json")
    result = evaluated(capfd, *ask, "--task", "exact_match", "--data", "problems.jsonl")
    assert (result["exact_match"], result["documents"]) == (0.0, 4)
    assert [sample["question"] for sample in samples(data / "result.samples.jsonl")] == [
        record["question"] for record in PROBLEMS
    ]
    judge = ("--judge", "math:dist")  # refuses texts: the judge is really called
    assert command_runs.call("evaluate", *ask, "--task", "instructions", "--data", "instructions.json", *judge) == 1
    capfd.readouterr()
    result = evaluated(capfd, *ask, "--task", "instructions", "--data", "instructions.json")
    written = samples(data / "result.samples.jsonl")
    assert [sample["reference"] for sample in written] == [record["output"] for record in INSTRUCTIONS]
    assert all({"instruction", "input", "answer"} <= sample.keys() for sample in written)
    assert result["rouge_l"] == pytest.approx(sum(sample["rouge_l"] for sample in written) / 3)


@pytest.mark.slow
def test_a_sliding_window_predicts_better_than_separate_rows(tiny_run, data, capfd) -> None:
    (data / "text.txt").write_text("The function returns a list of the values in the dictionary. " * 60)
    ask = ("--model", tiny_run, "--data", "text.txt", "--sequence_length", 64)
    packed = evaluated(capfd, *ask)
    apart = evaluated(capfd, *ask, "--stride", 64)
    overlapping = evaluated(capfd, *ask, "--stride", 16)
    assert packed["tokens"] == apart["tokens"] == overlapping["tokens"]
    assert packed["bytes"] == overlapping["bytes"] == 60 * 61
    assert apart["loss"] == pytest.approx(packed["loss"], rel=0.02)  # the rows of one document are the windows
    assert overlapping["loss"] < apart["loss"]
    assert packed["word_perplexity"] > packed["perplexity"]


def test_only_the_parameters_and_the_model_are_opened(tiny_run, data, capfd) -> None:
    run = data / "run"
    shutil.copytree(tiny_run, run)
    ask = ("--task", "multiple_choice", "--data", "choices.jsonl")
    before = evaluated(capfd, "--model", run, *ask)
    (step,) = (folder for folder in (run / "checkpoints").iterdir() if folder.name == "60")
    items = {folder.name for folder in step.iterdir() if folder.is_dir()}
    assert {"params", "model", "optimizer", "data"} <= items
    for item in items - {"params", "model"}:
        shutil.rmtree(step / item)
    after = evaluated(capfd, "--model", run, *ask)
    assert after["model"].endswith("step 60")
    assert after["model_fingerprint"] == before["model_fingerprint"]
    assert after["accuracy"] == before["accuracy"]


@pytest.mark.slow
def test_processes_agree(tiny_run, data, capfd) -> None:
    ask = ("--model", tiny_run, "--task", "multiple_choice", "--data", "choices.jsonl")
    alone = evaluated(capfd, *ask, "--output", "alone.json")
    jobs = command_runs.run_two("evaluate", *ask, "--output", "both.json", folder=data)
    assert [job.code for job in jobs] == [0, 0], jobs
    both = json.loads((data / "both.json").read_text())
    assert both["model_fingerprint"] == alone["model_fingerprint"]
    for first, second in zip(samples(data / "alone.samples.jsonl"), samples(data / "both.samples.jsonl"), strict=True):
        assert second["logprobs"] == pytest.approx(first["logprobs"], rel=1e-6)


MISTAKES = {
    "an unknown task": (["--task", "perplexety"], "--task perplexety: unknown; there are perplexity"),
    "no data": (["--task", "last_word"], "--data: needed by last_word"),
    "no such data": (["--task", "last_word", "--data", "nowhere.jsonl"], "--data: no file or directory nowhere.jsonl"),
    "a setting of another task": (
        ["--task", "multiple_choice", "--data", "choices.jsonl", "--stride", 4],
        "--stride: is for perplexity, not for multiple_choice",
    ),
    "examples without a number": (
        ["--task", "last_word", "--data", "passages.jsonl", "--fewshot_data", "passages.jsonl"],
        "--fewshot_data: set --num_fewshot too",
    ),
    "too many examples": (
        ["--task", "last_word", "--data", "passages.jsonl", "--num_fewshot", 6],
        "--data passages.jsonl: leaves nothing to measure on",
    ),
    "a record of another task": (
        ["--task", "multiple_choice", "--data", "passages.jsonl"],
        "passages.jsonl: holds nothing that can be used (6 wrong_form), such as passages.jsonl:1: no field 'question'",
    ),
    "a broken line": (
        ["--task", "last_word", "--data", "broken.jsonl"],
        "--max_bad_fraction: 1 of 2 records of broken.jsonl cannot be used (1 not_json), more than 0.001 of them; such "
        "as broken.jsonl:2: not JSON: ",
    ),
    "a broken example": (
        ["--task", "last_word", "--data", "passages.jsonl", "--num_fewshot", 1, "--fewshot_data", "broken.jsonl"],
        "--max_bad_fraction: 1 of 2 records of broken.jsonl cannot be used (1 not_json)",
    ),
    "no example": (
        ["--task", "last_word", "--data", "passages.jsonl", "--num_fewshot", 1, "--fewshot_data", "nowhere.jsonl"],
        "--fewshot_data: no file or directory nowhere.jsonl",
    ),
    "no bad record is allowed": (
        ["--task", "last_word", "--data", "broken.jsonl", "--bad_records", "fail", "--max_bad_fraction", 1.0],
        "broken.jsonl:2: not JSON: Expecting value, column 9 (--bad_records is fail)",
    ),
    "a text that is not UTF-8": (
        ["--data", "latin1.txt"],
        "latin1.txt: holds nothing that can be used (1 not_utf8), such as latin1.txt bytes 0-5: not UTF-8 at byte 3",
    ),
    "no text to measure on": (["--data", "nowhere.jsonl"], "--data: no file or directory nowhere.jsonl"),
    "too many bad documents": (
        ["--data", "broken.jsonl", "--max_bad_fraction", 0.4],
        "--max_bad_fraction: 1 of 2 documents of broken.jsonl cannot be used (1 not_json), more than 0.4 of them; such",
    ),
    "too large a share": (["--max_bad_fraction", 1.5], "--max_bad_fraction 1.5: must lie between 0 and 1"),
    "an answer as long as the context": (
        ["--task", "exact_match", "--data", "problems.jsonl", "--max_new_tokens", 512],
        "--max_new_tokens 512: leaves no room for a prompt in the context of 512 tokens",
    ),
    "a stride beyond the window": (["--stride", 65, "--sequence_length", 64], "--stride 65: leaves tokens out"),
    "an output elsewhere": (["--output", "nowhere/a.json"], "--output nowhere/a.json: there is no folder nowhere"),
    "no judge": (
        ["--task", "instructions", "--data", "instructions.json", "--judge", "nowhere:grade"],
        "--judge nowhere:grade: No module named 'nowhere'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line(mistake, tiny_run, data, capfd) -> None:
    (data / "broken.jsonl").write_text('{"text": "a b"}\n{"text": \n')
    (data / "latin1.txt").write_bytes(b"caf\xe9\n")
    arguments, said = MISTAKES[mistake]
    assert command_runs.call("evaluate", "--model", tiny_run, *arguments) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {said}")
