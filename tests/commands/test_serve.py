"""The command `serve`, as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

KEY = "canary-key-5417"
HEADERS = {"authorization": f"Bearer {KEY}"}
BODY = {"prompt": "a", "max_tokens": 30, "n": 8, "stream": True, "ignore_eos": True}


@contextmanager
def served(model: Path, folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """The process, the address, and the file of what it says."""
    said = folder / "said.txt"
    command = [sys.executable, "-m", "llama_jax.serve", "--model", str(model), "--port", "0", "--slots", "8", *more]
    with said.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env={**os.environ, "LLAMA_JAX_API_KEY": KEY}
        )
    try:
        while not (found := re.search(r"serving .* at (http://\S+)\n", said.read_text())):
            assert process.poll() is None, said.read_text()
        yield process, found[1], said
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_when_its_answers_are_written(small_run, tmp_path, number) -> None:
    with served(small_run.run_dir, tmp_path) as (process, url, said):
        with httpx2.stream("POST", f"{url}/v1/completions", json=BODY, headers=HEADERS) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(number)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert process.wait(30) == 0
        assert KEY not in said.read_text() and "/v1/completions 200 in" in said.read_text()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(small_run, tmp_path) -> None:
    many = BODY | {"prompt": ["a"] * 400, "n": 1, "stream": False}  # takes seconds
    room = ("--max_queue", "400", "--max_answers", "400")
    with served(small_run.run_dir, tmp_path, *room) as (process, url, said), ThreadPoolExecutor(1) as pool:
        pool.submit(httpx2.post, f"{url}/v1/completions", json=many, headers=HEADERS, timeout=60)
        while not re.search(r"answers_open [1-9]", httpx2.get(f"{url}/metrics", headers=HEADERS).text):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        while "again ends at once" not in said.read_text():
            assert process.poll() is None
        time.sleep(0.2)  # or it would be the same request once more
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_timeout_ends_the_server_well(small_run, tmp_path) -> None:
    environment = os.environ | {"LLAMA_JAX_API_KEY": KEY}
    command = [
        "timeout",
        "--preserve-status",
        "45",
        sys.executable,
        "-m",
        "llama_jax.serve",
        "--model",
        small_run.run_dir,
        "--port",
        "0",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "serving" in ended.stderr and "ended at once" not in ended.stderr
    assert ended.returncode == 0
