"""`rlhf` through its real command: the toy task is learned in all its stages, a signal changes nothing, and llama.cpp
reads the result."""

import json
import shutil
import signal
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_runs import ended, metrics, run, started, steps
from made_once import made_once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def aligned(tmp_path_factory) -> Path:
    """A folder with the tiny default, `run`, and the model that it begins with, `base`."""

    def make(folder: Path) -> None:
        base = folder / "base"
        assert run("pretrain", "--config", "tiny/pretrain", "--run_dir", base, folder=folder).code == 0
        done = run("rlhf", *_line(base), "--run_dir", folder / "run", folder=folder)
        assert done.code == 0, done.errors

    return made_once(tmp_path_factory, "aligned", make)


def _line(base: Path) -> list[object]:
    return ["--config", "tiny/rlhf", "--sft.model", base]


def test_each_stage_does_what_it_is_for(aligned) -> None:
    found = json.loads((aligned / "run" / "verdict.json").read_text())
    assert found["believed"] and all(stage["believed"] for stage in found["stages"].values())
    rewards = found["stages"]["ppo"]
    assert rewards["difference"] > 2 * rewards["difference_error"]
    spent = found["kl_per_answer"]
    assert spent["target"] and spent["mean"] <= 2 * spent["target"]
    judged = found["win_rates"]["phrases"]
    assert judged["count"] == 200 and judged["figure"] > 0.55 and judged["believed"]
    sampled = [record["reward"] for record in metrics(aligned / "run" / "ppo")]
    assert sum(sampled[-3:]) / 3 > sum(sampled[:3]) / 3


def test_what_is_done_is_not_made_again_and_the_report_is_drawn_anew(aligned, tmp_path) -> None:
    before = (aligned / "run" / "report.html").read_text()
    (aligned / "run" / "report.html").unlink()
    again = run("rlhf", *_line(aligned / "base"), "--run_dir", aligned / "run", folder=tmp_path)
    assert again.code == 0 and again.output.count("and verifies") == 3 and "comparing" not in again.output
    assert (aligned / "run" / "report.html").read_text() == before


def test_a_signal_ends_a_stage_with_75_and_the_same_command_ends_as_if_there_was_none(aligned, tmp_path) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "printed"
    run_dir.mkdir()
    shutil.copytree(aligned / "run" / "sft", run_dir / "sft")  # as made by the same settings but for the folder
    line = ["rlhf", *_line(aligned / "base"), "--run_dir", run_dir]
    with started(*line, output=output) as process:
        recorded = run_dir / "reward" / "metrics.jsonl"
        while not (recorded.exists() and recorded.read_text()) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stopped = ended(process, output)
    assert stopped.code == 75 and "interrupted: saved step" in stopped.errors
    whole = len(metrics(aligned / "run" / "reward"))
    assert 0 < steps(run_dir / "reward")[-1] < whole
    assert run(*line, folder=tmp_path).code == 0
    for stage in ("reward", "ppo"):
        assert metrics(run_dir / stage)[-1]["step"] == metrics(aligned / "run" / stage)[-1]["step"]
    mine, theirs = (json.loads((each / "verdict.json").read_text()) for each in (run_dir, aligned / "run"))
    assert mine["win_rates"] == theirs["win_rates"] and mine["stages"]["reward"] == theirs["stages"]["reward"]


@pytest.mark.skipif(not find_spec("xllamacpp"), reason="needs xllamacpp: pip install 'llama_jax[oracle]'")
def test_llama_cpp_loads_the_result_and_says_the_same(aligned, tmp_path) -> None:
    model = tmp_path / "aligned.gguf"
    source = aligned / "run" / "ppo"
    assert run("convert", "--source", source, "--target", model, "--format", "gguf", folder=tmp_path).code == 0
    prompt = "Where is the salt?"
    asked = ["--prompt", prompt, "--chat", "--temperature", 0, "--max_new_tokens", 40, "--json"]
    ours = json.loads(run("generate", "--model", source, *asked, folder=tmp_path).output.splitlines()[-1])["text"]
    xllamacpp = import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.warmup, settings.verbosity = str(model), 256, False, -1
    server = xllamacpp.Server(settings)
    theirs = server.handle_completions({"prompt": prompt, "temperature": 0, "n_predict": 40})
    assert theirs["choices"][0]["text"].strip() == ours.strip() != ""
