"""Two processes save and restore together; one process alone restores what they saved."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_trees import same, targets

from llama_jax.checkpoints.steps.restoring import restore

SCRIPT = Path(__file__).parents[1] / "save_with_two_processes.py"


@pytest.mark.slow
def test_two_processes_agree_and_one_reads_what_they_wrote(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPT.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(port), tmp_path / "run"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(output.endswith("done\n") for output in printed), "\n".join(printed)[-6000:]

    for devices in (1, 2):
        found = restore(tmp_path / "run", targets(devices), step=3, files=("data", "model"), say=pytest.fail)
        assert found is not None and same(found.items, 3)
        assert found.files == {
            "data/streams-0-of-2.json": b"[3, 0]",
            "data/streams-1-of-2.json": b"[3, 1]",
            "model/config.json": b"{}",
        }
