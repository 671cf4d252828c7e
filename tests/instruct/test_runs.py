"""Whole runs of the command against an endpoint that answers well: what they write, and that they go on exactly."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_endpoint import NOUNS, good_answer, scripted_endpoint
from sweeps import some

from llama_jax.config import COMMANDS
from llama_jax.core.settings.command_line import run_command
from llama_jax.data.instructions.records import conversation_of, format_of
from llama_jax.data.sources.opening import open_records
from llama_jax.instruct.judging import score_in
from llama_jax.self_instruct import self_instruct

FORMS = ("original", "alpaca", "magpie")
HERE = Path(__file__).parent
DEFAULT_CASES = ("alpaca chat", "magpie chat")
ONE_KILL = "original 50 1"


def arguments(url: str, run: Path, form: str, *more: object) -> list[str]:
    opening = ("--user_opening", "<user>") if form == "magpie" else ()
    found = ["--form", form, "--endpoint.model", "m", "--endpoint.url", url, "--run_dir", run, *opening, *more]
    return list(map(str, found))


def run(argv: list[str], command: str = "self_instruct") -> int:
    return run_command(self_instruct, COMMANDS[command], command=command, commands=COMMANDS, argv=argv)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # What a figure takes is most of what these runs take; one test draws it.
    monkeypatch.setattr("llama_jax.instruct.loop.draw_report", lambda found, format, seeds=False: b"<svg></svg>")


@pytest.mark.parametrize(
    "case", some([f"{form} {way}" for form in FORMS for way in ("chat", "completion")], default=DEFAULT_CASES)
)
def test_a_run_keeps_most_of_what_a_good_model_writes(tmp_path, capsys, case: str) -> None:
    form, prompting = case.split()
    with scripted_endpoint() as scripted:
        argv = arguments(scripted.url, tmp_path / "run", form, "--tasks", 12, "--prompting", prompting, "--json")
        assert run(argv) == 0, capsys.readouterr().err
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        asked = list(scripted.bodies)
        assert run(argv) == 0  # done already
        assert len(scripted.bodies) == len(asked)
    assert result["kept"] >= 12
    assert result["kept_fraction"] > 0.5
    assert result["requests"] == result["asked"] == len(asked)
    assert (result["tokens_in"], result["tokens_out"], result["lost"]) == (100 * len(asked), 50 * len(asked), 0)
    starts = [body for body in asked if ("messages" in body) == (prompting == "chat")]
    assert starts == asked if form != "magpie" else {"prompt" in body for body in asked} == {True, False}
    tasks, candidates = lines(tmp_path / "run" / "tasks.jsonl"), lines(tmp_path / "run" / "candidates.jsonl")
    assert len({task["instruction"] for task in tasks}) == result["kept"]
    assert len(candidates) == result["proposed"] == result["kept"] + sum(result["dropped"].values())
    assert {candidate["reason"] for candidate in candidates} - {None} == set(result["dropped"])


def test_sft_reads_what_a_run_writes(tmp_path) -> None:
    with scripted_endpoint() as scripted:
        run(arguments(scripted.url, tmp_path / "run", "alpaca", "--tasks", 20, "--include_seeds", "true"))
    records = open_records(str(tmp_path / "run" / "tasks.jsonl"))
    assert {format_of(records[number].values) for number in range(len(records))} == {"alpaca"}
    question, answer = conversation_of(records[len(records) - 1], "alpaca")
    assert question.content.endswith(".")
    assert answer.content.startswith("Here are")
    assert records[0].values["instruction"].startswith("Write a polite email to my landlord")
    assert sum(records[number].values["round"] == 0 for number in range(len(records))) >= 175


def test_the_original_form_shows_two_of_its_own_and_asks_for_labels_first(tmp_path) -> None:
    with scripted_endpoint() as scripted:
        run(arguments(scripted.url, tmp_path / "run", "original", "--tasks", 45, "--prompting", "completion"))
    prompts = [body["prompt"] for body in scripted.bodies]
    lists = [prompt for prompt in prompts if prompt.startswith("Here is a series")]
    own = [sum(bool(re.search(" for one .* before ", line)) for line in prompt.splitlines()) for prompt in lists]
    assert own[:5] == [0] * 5
    assert set(own[5:]) == {2}
    assert all(re.findall(r"^\d+\.", prompt, re.MULTILINE) == [f"{n}." for n in range(1, 10)] for prompt in lists)
    tasks = lines(tmp_path / "run" / "tasks.jsonl")
    labelled = [task for task in tasks if task["is_classification"]]
    assert {task["output"] for task in labelled} == {"good", "bad"}
    assert all(task["output"].startswith("It is") for task in tasks if not task["is_classification"])
    assert {body["presence_penalty"] for body in scripted.bodies if "Is it class" not in body["prompt"]} == {1.5, 2.0}


def test_a_domain_is_said_and_its_drift_reported(tmp_path) -> None:
    with scripted_endpoint() as scripted:
        run(arguments(scripted.url, tmp_path / "run", "alpaca", "--tasks", 20, "--domain", "old ships"))
    assert all("Every task is about old ships." in body["messages"][0]["content"] for body in scripted.bodies)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    by_round = report["similarity"]["to_seeds_by_round"]
    assert list(by_round) == [str(number) for number in range(1, report["funnel"]["rounds"] + 1)]
    assert all(0 < similarity <= 0.7 for similarity in by_round.values())


def test_a_run_that_keeps_nothing_ends(tmp_path, capsys) -> None:
    with scripted_endpoint(lambda body: "Sorry.") as scripted:
        assert run(arguments(scripted.url, tmp_path / "run", "original", "--patience", 3)) == 0
    assert len(scripted.bodies) == 3 * 5
    assert "nothing was kept" in capsys.readouterr().out


def test_another_run_asks_only_what_is_new(tmp_path) -> None:
    with scripted_endpoint() as scripted:
        run(arguments(scripted.url, tmp_path / "a", "alpaca", "--tasks", 30))
        asked = len(scripted.bodies)
        strict = ("--filters.max_similarity", 0.5)
        kept = ("--answers", tmp_path / "a" / "answers.jsonl")
        run(arguments(scripted.url, tmp_path / "b", "alpaca", "--tasks", 30, *strict, *kept))
        fewer = len(lines(tmp_path / "b" / "candidates.jsonl"))
        assert len(scripted.bodies) - asked == max(0, len(lines(tmp_path / "b" / "metrics.jsonl")) * 5 - asked)
        assert run(arguments(scripted.url, tmp_path / "a", "alpaca", "--tasks", 30, "--filters.min_words", 5)) == 2
        before = (tmp_path / "a" / "tasks.jsonl").read_bytes()
        run(arguments(scripted.url, tmp_path / "a", "alpaca", "--tasks", 120))
    assert fewer >= len(lines(tmp_path / "a" / "metrics.jsonl"))
    assert (tmp_path / "a" / "tasks.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("case", some([ONE_KILL, *(f"{form} 200 2" for form in FORMS)], default=[ONE_KILL]))
@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_exactly(tmp_path, case: str) -> None:
    form, (requests, kills) = case.split()[0], map(int, case.split()[1:])
    with scripted_endpoint(seconds=0.02) as scripted:
        more = ("--tasks", 10_000, "--max_requests", requests, "--endpoint.concurrency", 2)
        run(arguments(scripted.url, tmp_path / "whole", form, *more))
        whole = len(scripted.bodies)
        argv = arguments(scripted.url, tmp_path / "killed", form, *more)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])}
        for part in range(1, kills + 1):
            command = [sys.executable, HERE / "self_instruct_killed.py", *argv]
            with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
                while len(scripted.bodies) < whole + part * requests // (kills + 1) and process.poll() is None:
                    time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL
        answered = len((tmp_path / "killed" / "answers.jsonl").read_bytes().splitlines())
        asked = len(scripted.bodies)
        assert run(argv) == 0
    for name in ("tasks.jsonl", "candidates.jsonl", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    kept = [line["key"] for line in lines(tmp_path / "killed" / "answers.jsonl")]
    assert len(kept) == len(set(kept)) == whole
    assert len(scripted.bodies) - asked == whole - answered  # what was answered before the kill is not asked again
    assert len(scripted.bodies) - whole <= whole + 2 * kills  # but for what was under way


def test_a_budget_ends_a_run_and_a_larger_one_goes_on(tmp_path, capsys) -> None:
    price = ("--endpoint.price_in", 2, "--endpoint.price_out", 10, "--endpoint.concurrency", 1)
    with scripted_endpoint() as scripted:
        argv = arguments(scripted.url, tmp_path / "run", "original", "--tasks", 20, *price)
        assert run([*argv, "--endpoint.budget", "0.0035"]) == 1
        assert scripted.answered == 5  # the instructions of the first round, which is not complete
        assert "budget" in capsys.readouterr().err
        assert not lines(tmp_path / "run" / "tasks.jsonl")
        assert run([*argv, "--endpoint.budget", "1"]) == 0
        assert scripted.answered == len(lines(tmp_path / "run" / "answers.jsonl"))


def chinese_answer(body: dict) -> str:
    assert "个任务的列表：" in body["messages"][0]["content"]
    draw = random.Random(body["seed"])
    blocks = []
    for n in range(4, 21):
        words = "".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(12))
        blocks.append(f"###\n{n}. 指令：写一段说明，{words}\n{n}. 输入：\n<无输入>\n{n}. 输出：\n好的，第{n}个。")
    return "\n".join(blocks)


def test_a_run_in_chinese_from_seeds_to_report(tmp_path) -> None:
    chinese = ("--seed_tasks", "chinese", "--prompt_language", "chinese")
    with scripted_endpoint(chinese_answer) as scripted:
        argv = arguments(scripted.url, tmp_path / "run", "alpaca", "--tasks", 30, "--max_requests", 5, *chinese)
        assert run([*argv, "--language", "any"]) == 0
        english = arguments(scripted.url, tmp_path / "english", "alpaca", "--max_requests", 5, *chinese)
        assert run(english) == 0
    tasks = lines(tmp_path / "run" / "tasks.jsonl")
    assert len(tasks) >= 30
    assert (tasks[0]["input"], tasks[0]["output"]) == ("", "好的，第4个。")
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["lengths"]["instruction"][0] > 10
    assert report["verbs"]["top"]["写"]["nouns"] == {"说明": len(tasks)}
    dropped = json.loads((tmp_path / "english" / "report.json").read_text())["funnel"]["dropped"]
    assert set(dropped) == {"too_short"}  # one word without spaces: nothing passes the papers' filters
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert tasks[0]["instruction"] in page


def test_the_report_is_drawn_and_holds_no_markup_of_a_model(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()

    def answer(body: dict) -> str:
        return good_answer(body).replace(f" {NOUNS[0]} ", " <script>alert(1)</script> ").replace("the ", "写 ", 1)

    with scripted_endpoint(answer) as scripted:
        assert run(arguments(scripted.url, tmp_path / "run", "alpaca", "--tasks", 60, "--language", "any")) == 0
    assert (tmp_path / "run" / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["verbs_of_seeds"]["instructions"] == 175
    assert len(report["most_similar_pairs"]) == 20
    scores = [pair["rouge_l"] for pair in report["most_similar_pairs"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] <= 0.7


def test_conversations(tmp_path) -> None:
    with scripted_endpoint() as scripted:
        argv = ["--endpoint.model", "m", "--endpoint.url", scripted.url, "--run_dir", str(tmp_path)]
        assert run([*argv, "--conversations", "3", "--turns", "6"], "self_instruct conversations") == 0
        assert len(scripted.bodies) == 18
        assert run([*argv, "--conversations", "3", "--turns", "6"], "self_instruct conversations") == 0
        assert len(scripted.bodies) == 18
    whole, examples = lines(tmp_path / "conversations.jsonl"), lines(tmp_path / "examples.jsonl")
    assert [len(each["messages"]) for each in whole] == [6, 6, 6]
    assert [message["role"] for message in whole[0]["messages"]] == ["user", "assistant"] * 3
    assert [len(example["prompt"]) for example in examples] == [1, 3, 5] * 3
    turns = conversation_of(open_records(str(tmp_path / "examples.jsonl"))[1], "prompt_completion")
    assert [turn.is_learned for turn in turns if turn.role == "assistant"] == [False, True]
    asked = [body["messages"] for body in scripted.bodies]
    assert all(talk["messages"][:5] in asked for talk in whole)  # the assistant is asked with the talk itself


@pytest.mark.parametrize(
    ("answer", "score"),
    [("4", 4.0), ("Score: 0", 0.0), ("3.5/5", 3.5), ("**5**", 5.0), ("10", None), ("good", None), ("分数：2分", 2.0)],
)
def test_the_score_in_an_answer(answer: str, score: float | None) -> None:
    assert score_in(answer) == score


def test_a_judge_scores_answers(tmp_path) -> None:
    file = tmp_path / "answers.jsonl"
    records = [
        {"user_input": "Hi?", "completion": "Hello!"},
        {"instruction": "Add.", "input": "2 3", "output": "5"},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yes?"}]},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    with scripted_endpoint(lambda body: str(body["messages"][0]["content"].count("Hi"))) as scripted:
        argv = ["--endpoint.model", "m", "--endpoint.url", scripted.url, "--run_dir", str(tmp_path / "run")]
        assert run([*argv, "--data", str(file)], "self_instruct judge") == 0
    assert lines(tmp_path / "run" / "scores.jsonl") == [
        {"user_input": asked, "completion": said, "score": score, "round": 1}
        for asked, said, score in (("Hi?", "Hello!", 1.0), ("Add.\n\n2 3", "5", 0.0), ("Hi", "Yes?", 1.0))
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--form", "magpie", "--endpoint.model", "m"], "user_opening: magpie needs it"),
        (["--user_opening", "x"], "user_opening: means nothing to --form alpaca"),
        (["--model", "a", "--endpoint.model", "m"], "endpoint.model: contradicts --model"),
        (["--tasks", "0"], "tasks: 0 must be at least 1"),
        (["--filters.max_words", "2"], "filters.max_words: 2 is less than"),
        (
            ["--seed_tasks", "nowhere.jsonl", "--endpoint.model", "m"],
            "--seed_tasks: no file or directory nowhere.jsonl",
        ),
        (
            ["--endpoint.model", "m", "--endpoint.url", "http://x/v1", "--answers", "no/a.jsonl"],
            "there is no folder no",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, argv: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
