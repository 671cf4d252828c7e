"""The comparison of texts is measured by the real command."""

import json

from llama_jax.benchmark import benchmark
from llama_jax.config import COMMANDS
from llama_jax.core.settings.command_line import run_command


def test_pools_of_each_size_are_measured(tmp_path, capsys) -> None:
    argv = ["--pools", "[40, 80]", "--candidates", "5", "--output", str(tmp_path), "--json"]
    name = "benchmark rouge"
    assert run_command(benchmark, COMMANDS[name], command=name, commands=COMMANDS, argv=argv) == 0
    result = json.loads((tmp_path / "rouge.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert list(result["pools"]) == ["40", "80"]
    assert all(found["seconds"] > 0 and found["megabytes"] > 0 for found in result["pools"].values())
    if (difference := result["largest_difference"]) is not None:  # where rouge-score is installed
        assert difference < 1e-9
        assert all(found["times"] > 1 for found in result["pools"].values())


def test_a_pool_without_texts_is_refused(capsys) -> None:
    name = "benchmark rouge"
    assert run_command(benchmark, COMMANDS[name], command=name, commands=COMMANDS, argv=["--pools", "[0]"]) == 2
    assert "--pools [0]: needs numbers of at least 1" in capsys.readouterr().err
