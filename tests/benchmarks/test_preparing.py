"""`benchmark prepare`: what a command takes, the plan by measured rates, and the rates themselves."""

import json
import sys

import pytest
from command_runs import call

from llama_jax.benchmarks.preparing.config import MadeDocuments, PrepareBenchmarkConfig
from llama_jax.benchmarks.preparing.corpus_plan import SOURCES, planned
from llama_jax.benchmarks.preparing.documents import small_tokenizer, write_documents
from llama_jax.benchmarks.preparing.measured import measured
from llama_jax.core.errors import UserError

HOLDS = """
import subprocess, sys
held = bytearray(40 * 2**20)
program = "import time; held = bytearray(60 * 2**20); time.sleep(0.6); sum(range(10**6))"
subprocess.run([sys.executable, "-c", program], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_command_holds_what_its_processes_hold_together(tmp_path) -> None:
    taken = measured([sys.executable, "-c", HOLDS], tmp_path / "log")
    assert 100 < taken.peak_bytes / 2**20 < 150
    assert 0.6 < taken.seconds < 30
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 3:.*gone wrong"):
        measured([sys.executable, "-c", "print('gone wrong', flush=True); raise SystemExit(3)"], tmp_path / "log")


def test_a_plan_divides_by_all_cores_what_is_not_done_by_one_process() -> None:
    """4.749 TB are a million times what was measured."""
    total = sum(SOURCES.values()) * 1e9
    steps = [
        {"name": "serial", "seconds": 0.036, "read": 7, "written": 0, "is_serial": True},
        {"name": "parallel", "seconds": 36.0, "read": 0, "written": 5, "is_serial": False},
    ]
    config = PrepareBenchmarkConfig(machines=10, cores=4, json=True)
    plan = planned(config, {"text_bytes": total / 1e6, "steps": steps}, 10)
    hours, machine_hours, read, written = (
        [step[name] for step in plan["steps"]] for name in ("hours", "machine_hours", "read_bytes", "written_bytes")
    )
    assert hours == pytest.approx([10, 250, 260]) and machine_hours == pytest.approx([10, 2500, 2510])
    assert read == pytest.approx([7e6, 0, 7e6]) and written == pytest.approx([0, 5e6, 5e6])
    assert total == 4.749e12


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"against": "datatrove"}, "--against datatrove: both sides need the same tokenizer"),
        ({"against": "datatrove", "tokenizer": "a", "machines": 3}, "--machines 3: needs the rates of steps"),
        ({"turns": 0}, "--turns 0: must be at least 1"),
        ({"tasks": ()}, "--tasks []: needs at least one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said) -> None:
    with pytest.raises(UserError, match=said.replace("[]", r"\[\]")):
        PrepareBenchmarkConfig(**settings)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_documents(tmp_path) -> None:
    made = MadeDocuments(documents=300, words=30, near_duplicates=0.2, seed=3)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text_bytes = write_documents(made, tmp_path / name, files=2)
    contents = [[(tmp_path / name / f"0{number}.jsonl").read_text() for number in range(2)] for name in ("a", "b")]
    assert contents[0] == contents[1]
    texts = [json.loads(line)["text"] for content in contents[0] for line in content.splitlines()]
    assert len(texts) == 300 and sum(len(text.encode()) for text in texts) == text_bytes
    words = [set(text.split()) for text in texts]
    near = sum(any(len(one & other) > 0.8 * len(one | other) for other in words[:n]) for n, one in enumerate(words))
    assert 30 < near < 90
    tokenizer = small_tokenizer()
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


@pytest.mark.slow
def test_all_steps_are_measured(tmp_path) -> None:
    settings = ("--made.documents", 200, "--turns", 1, "--machines", 2, "--output", tmp_path)
    assert call("benchmark prepare", *settings) == 0
    result = json.loads((tmp_path / "prepare.json").read_text())
    names = [step["name"] for step in result["steps"]]
    assert {"indexing the source", "reading and cleaning", "MinHash signatures", "tokenization"} <= set(names)
    assert all(step["seconds"] > 0 for step in result["steps"])
    assert len(result["plan"]["steps"]) == len(names) + 1
